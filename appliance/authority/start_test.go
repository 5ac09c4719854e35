package authority_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
)

// crash cuts the log before its last lines, as if they had never reached the
// disk, and opens it again with an index made anew.
func (w *world) crash(lines int) {
	w.t.Helper()
	w.close()
	path := filepath.Join(w.dir, "audit", "segments", "000000000000.jsonl")
	data := must[[]byte](w.t)(os.ReadFile(path))
	all := bytes.SplitAfter(data, []byte("\n"))
	all = all[:len(all)-1] // what follows the last LF
	writeFile(w.t, path, bytes.Join(all[:len(all)-lines], nil))
	for _, suffix := range []string{"", "-wal", "-shm"} {
		_ = os.Remove(filepath.Join(w.dir, "index.db"+suffix))
	}
	w.open()
}

func (w *world) start(b authority.Begin) {
	w.t.Helper()
	if err := w.Start(w.t.Context(), b); err != nil {
		w.t.Fatal(err)
	}
}

// A crash after any number of the lines of an issuance leaves a serial that is
// issued, or one that is to be revoked and a challenge that can be used again.
//
// Covers: S-149
func TestACrashAtEveryLineOfAnIssuance(t *testing.T) {
	for name, fail := range map[string]error{"signed": nil, "no answer from the token": errors.New("token: no answer")} {
		for lost := range 4 {
			t.Run(fmt.Sprintf("%s, %d lines lost", name, lost), func(t *testing.T) {
				w := newWorld(t)
				r := w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: w.challenge("wifi", "a.corp.example"), key: deviceKeys()[0]})
				w.token.before = func(context.Context) error { return fail }
				if out, err := w.Submit(t.Context(), r); (err == nil) != (fail == nil) {
					t.Fatal(describe(out, err))
				}
				w.token.before = nil
				// What stands behind the outcome is of no account here.
				w.crash(lost)
				w.start(authority.Begin{SameBoot: true})
				w.sound()
				out, err := w.Submit(t.Context(), r)
				created := w.count("challenge", "created") == 1
				if created && (err != nil || out.Status != protocol.Issued) {
					t.Errorf("the same request again: %s", describe(out, err))
				}
				burnt := must[[]store.Issuance](t)(w.index.Certificates(t.Context(), store.CertificateFilter{State: store.Unknown}))
				for _, i := range burnt {
					if !i.RevocationDue {
						t.Errorf("serial %s is burnt and not to be revoked", i.Serial)
					}
				}
				w.sound()
			})
		}
	}
}

// After a machine stopped without warning no challenge is open, not even one
// that the start itself frees.
func TestOpenChallengesAreVoidAfterTheMachineStopped(t *testing.T) {
	for name, tt := range map[string]struct {
		begin authority.Begin
		void  bool
	}{
		"the machine stopped": {authority.Begin{}, true},
		"the service died":    {authority.Begin{SameBoot: true}, false},
		"an orderly restart":  {authority.Begin{Clean: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			open := w.request(asked{profile: "wifi", transaction: "1", cn: "a.corp.example", challenge: w.challenge("wifi", "a.corp.example"), key: deviceKeys()[0]})
			spent := w.request(asked{profile: "wifi", transaction: "2", cn: "b.corp.example", challenge: w.challenge("wifi", "b.corp.example"), key: deviceKeys()[1]})
			if out, err := w.Submit(t.Context(), spent); err != nil || out.Status != protocol.Issued {
				t.Fatal(describe(out, err))
			}
			w.crash(1) // its intent has no outcome
			w.start(tt.begin)
			left := must[[]challenge.Record](t)(w.index.Challenges(t.Context(), store.ChallengeFilter{State: challenge.Open}))
			if (len(left) == 0) != tt.void {
				t.Errorf("%d challenges are open", len(left))
			}
			for _, r := range []protocol.Request{open, spent} {
				if out, err := w.Submit(t.Context(), r); err != nil || (out.Status == protocol.Issued) == tt.void {
					t.Error(describe(out, err))
				}
			}
			first := w.records(func(r audit.Record) bool {
				return r.Event == "system.unclean" || r.Event == "revocation" || r.Outcome == "revoked" || r.Event == "system.start"
			})
			if !tt.begin.Clean && first[0].Event != "system.unclean" {
				t.Errorf("%s came before system.unclean", first[0].Event)
			}
			w.sound()
		})
	}
}

// A profile that issued all that it may in this minute tells a device to come
// again, which costs no try.
func TestAFullMinuteCostsNoChallenge(t *testing.T) {
	w := newWorld(t)
	ask := func(transaction, cn string, secret []byte) protocol.Outcome {
		t.Helper()
		out, err := w.Submit(t.Context(), w.request(asked{profile: "slow", transaction: transaction, cn: cn, challenge: secret, key: deviceKeys()[0]}))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := ask("1", "a.corp.example", w.challenge("slow", "a.corp.example")); out.Status != protocol.Issued {
		t.Fatal(describe(out, nil))
	}
	secret := w.challenge("slow", "b.corp.example")
	for n := range challenge.MaxRefusals + 1 {
		if out := ask(fmt.Sprint("b", n), "b.corp.example", secret); out.Status != protocol.Refused {
			t.Fatal(describe(out, nil))
		}
	}
	w.ahead.Store(int64(2 * time.Minute))
	if out := ask("c", "b.corp.example", secret); out.Status != protocol.Issued {
		t.Errorf("the next minute: %s", describe(out, nil))
	}
}
