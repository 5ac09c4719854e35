package pipeline_test

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// listed is how many certificates the index has for a name.
func listed(t *testing.T, cn string) int {
	t.Helper()
	out, errOut, code := shared.Postern(t.Context(), nil, "cert", "list", "--subject", cn)
	if code != 0 {
		t.Fatalf("postern cert list: %s", errOut)
	}
	return strings.Count(out, cn)
}

// TestOneChallengeIsOneCertificate has 16 devices ask four times each, all at
// once and with one challenge.
//
// Covers: S-090, S-100, S-102, S-106
func TestOneChallengeIsOneCertificate(t *testing.T) {
	d := at(t, "many")
	for round := range 3 {
		cn := fmt.Sprintf("race-%d.demo.example", round)
		c := challenge(t, "many", cn)
		messages := make([]client.Message, len(keys))
		for i, key := range keys {
			messages[i] = selfSigned(t, key, ask(t, key, cn, c.Challenge))
			messages[i].TransactionID = fmt.Sprintf("race-%d-%d", round, i)
		}
		got, errs := together(4*len(keys), func(i int) (*x509.Certificate, error) { return send(t, d, messages[i%len(keys)]) })
		if len(got) == 0 || len(got) > 4 {
			t.Fatalf("round %d: %d devices have a certificate; %v", round, len(got), errs)
		}
		for _, cert := range got {
			if !cert.Equal(got[0]) {
				t.Errorf("round %d: serials %x and %x for one challenge", round, got[0].SerialNumber, cert.SerialNumber)
			}
		}
		if n := listed(t, cn); n != 1 {
			t.Errorf("round %d: the index has %d certificates", round, n)
		}
		for _, err := range errs[:3] {
			refused(t, err).is(t, badRequest, notValid)
		}
		for _, err := range errs {
			if !strings.Contains(err.Error(), notValid) {
				t.Errorf("round %d: %v", round, err)
			}
		}
	}
}

// TestARequestThatIsSentAgain: its answer was lost, or the network sent it twice.
// One certificate is issued, whoever asks how often; each answer is a new one.
//
// Covers: S-148
func TestARequestThatIsSentAgain(t *testing.T) {
	d := at(t, "demo")
	for what, fresh := range map[string]bool{"the same octets": false, "a fresh signer and nonce": true} {
		t.Run(what, func(t *testing.T) {
			cn, key := fmt.Sprintf("again-%v.demo.example", fresh), newKey(t)
			csr := ask(t, key, cn, challenge(t, "demo", cn).Challenge)
			requests := make([]*site.Request, 64)
			for i := range requests {
				if requests[i] = requests[0]; i == 0 || fresh {
					m := selfSigned(t, key, csr)
					m.TransactionID = cn
					requests[i] = must(d.Request(m))(t)
				}
			}
			from := logSize(t)
			replies, errs := together(len(requests), func(i int) (*client.Reply, error) {
				reply, err := d.Post(t.Context(), requests[i].DER)
				if err != nil {
					return nil, err
				}
				_, err = client.Open(reply, requests[i].Expect)
				return reply, err
			})
			if len(errs) > 0 {
				t.Fatalf("%d of %d without a certificate: %v", len(errs), len(requests), errs[0])
			}
			last := must(d.Do(t.Context(), requests[0]))(t).Certificate
			nonces := map[string]bool{}
			for _, reply := range replies {
				nonces[string(must(client.Inspect(reply))(t).SenderNonce)] = true
			}
			if len(nonces) != len(replies) {
				t.Errorf("%d nonces in %d answers", len(nonces), len(replies))
			}
			var issued, repeated int
			for _, r := range records(t, from) {
				switch {
				case r.Event != "enroll" || r.Outcome == "intent":
					continue
				case r.Object.Serial != hex.EncodeToString(last.SerialNumber.Bytes()):
					t.Errorf("another certificate: %+v", r)
				case r.Outcome == "issued":
					issued++
				case r.Outcome == "repeated":
					repeated++
				}
			}
			if issued != 1 || repeated != len(requests) || listed(t, cn) != 1 {
				t.Errorf("issued %d times, repeated %d times, %d certificates", issued, repeated, listed(t, cn))
			}
		})
	}
}

// Covers: S-106
func TestAChallengeTwice(t *testing.T) {
	d := at(t, "demo")
	const cn = "twice.demo.example"
	_, c := enrolled(t, d, "demo", cn, newKey(t))
	_, err := enroll(t, d, newKey(t), cn, c.Challenge)
	r := refused(t, err).is(t, badRequest, notValid).reasons(t, "challenge").challengeWhy(t, "spent")
	if alert := r.event(t, "security", "alert"); alert.Object.Challenge != c.ID || alert.Object.What != "a spent challenge was shown again" {
		t.Errorf("the security event says %+v, and the challenge is %s", alert, c.ID)
	}
	if n := listed(t, cn); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

// TestBadChallengesLookTheSame: a device cannot find out what is wrong with one.
//
// Covers: S-105, S-106
func TestBadChallengesLookTheSame(t *testing.T) {
	t.Parallel() // it waits
	d := at(t, "many")
	const cn = "bad.demo.example"
	key := keys[0]
	expired := challenge(t, "many", cn, "--ttl", "1s").Challenge
	over := time.Now().Add(2100 * time.Millisecond)
	worn := challenge(t, "many", cn).Challenge
	for range 5 {
		_, _ = enroll(t, d, key, "other.demo.example", worn)
	}
	_, spent := enrolled(t, d, "many", cn, keys[1])
	time.Sleep(time.Until(over))
	var first string
	for _, tt := range []struct{ challenge, why string }{
		{"00000000000000000000000000", "unknown"},
		{"not even of the right form", "unknown"},
		{strings.Repeat("x", 255), "unknown"},
		{expired, "expired"},
		{spent.Challenge, "spent"},
		{challenge(t, "many", "else.demo.example").Challenge, "other-names"},
		{challenge(t, "many", cn, "--san", "dns:"+cn).Challenge, "other-names"},
		{challenge(t, "interop", cn).Challenge, "other-profile"},
		{worn, "revoked"},
	} {
		t.Run(tt.why, func(t *testing.T) {
			request := must(d.Request(selfSigned(t, key, ask(t, key, cn, tt.challenge))))(t)
			reply := must(d.Post(t.Context(), request.DER))(t)
			_, err := client.Open(reply, request.Expect)
			r := refused(t, err).is(t, badRequest, notValid).reasons(t, "challenge").challengeWhy(t, tt.why)
			if r.alarms() != (tt.why == "spent") {
				t.Errorf("a security event: %v", r.alarms())
			}
			if got := looks(t, reply); first == "" {
				first = got
			} else if got != first {
				t.Errorf("it looks like\n%s\nand not like\n%s", got, first)
			}
		})
	}
	_, err := enroll(t, d, key, cn, "")
	refused(t, err).is(t, badRequest, "a new enrollment needs a challenge")
}

func TestFiveRefusalsRevoke(t *testing.T) {
	d := at(t, "many")
	const cn = "five.demo.example"
	key := keys[0]
	c := challenge(t, "many", cn)
	for i := 1; i <= 5; i++ {
		_, err := enroll(t, d, key, fmt.Sprintf("guess-%d.demo.example", i), c.Challenge)
		r := refused(t, err).is(t, badRequest, notValid)
		revoked := false
		for _, one := range r.records {
			revoked = revoked || one.Event == "challenge" && one.Outcome == "revoked" && one.Object.ID == c.ID
		}
		if revoked != (i == 5) {
			t.Errorf("after %d refusals revoked: %v", i, revoked)
		}
	}
	_, err := enroll(t, d, key, cn, c.Challenge)
	refused(t, err).is(t, badRequest, notValid).challengeWhy(t, "revoked")
}

// TestFourRefusalsDoNot: a device that was wrong may still become right.
func TestFourRefusalsDoNot(t *testing.T) {
	d := at(t, "many")
	const cn = "four.demo.example"
	c := challenge(t, "many", cn)
	for range 4 {
		_, err := enroll(t, d, keys[0], "guess.demo.example", c.Challenge)
		refused(t, err)
	}
	must(enroll(t, d, keys[0], cn, c.Challenge))(t)
}
