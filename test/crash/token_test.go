package crash_test

import (
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
	"github.com/postern-pki/postern/test/softhsm"
)

// request is what a device sends again and again, the same bytes each time.
func request(t *testing.T, d *site.Device, key *rsa.PrivateKey, c site.Challenge) *site.Request {
	t.Helper()
	e := enrollment(key, c)
	csr, err := client.NewCSR(key, client.CSR{Subject: e.Subject, Challenge: e.Challenge})
	if err != nil {
		t.Fatal(err)
	}
	signer, err := site.SelfSigned(key, e.Subject, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	r, err := d.Request(client.Message{Type: scep.PKCSReq, Signer: signer, SignerKey: key, CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// outcomes are the log's words on enrollments and revocations, from a record on.
func outcomes(t *testing.T, s *site.Site, from uint64) []string {
	t.Helper()
	var all []string
	for _, l := range lines(t, s, from) {
		if r := l.Record; r.Event == "enroll" || r.Event == "revocation" {
			all = append(all, r.Outcome)
		}
	}
	return all
}

// listed waits until the newest revocation is in a CRL, which the CA's key signs too.
func listed(t *testing.T, s *site.Site) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		waits := false
		for _, l := range lines(t, s, 0) {
			switch r := l.Record; r.Event + "/" + r.Outcome {
			case "revocation/due":
				waits = true
			case "crl/issued":
				waits = false
			}
		}
		if !waits {
			return
		}
		if time.Now().After(end) {
			t.Fatal("a revocation is in no CRL after 30 s")
		}
	}
}

// TestATokenThatFailsCostsNoChallenge has the token fail at each of the three
// operations of an enrollment. The device is told to come back, and whatever it
// was, the same request gets a certificate then: one for the challenge.
//
// Covers: S-013
func TestATokenThatFailsCostsNoChallenge(t *testing.T) {
	s := newSite(t)
	shim := shimmed(t, s)
	rewrite(t, s.Config(), func(text string) string {
		return strings.Replace(text, "\ntoken:\n", "\ntoken:\n    deadline: 2s\n", 1)
	})
	start(t, s)
	d, key := newDevice(t, s), newKey(t)
	again := []string{"intent", "issued"}
	for i, tt := range []struct {
		what, call, effect string
		count              int // of spoiled calls for one request
		during, after      []string
	}{
		{"opening the envelope cannot begin", "DecryptInit:ra-decrypt", "rv 0x30", 1, nil, again},                             // CKR_DEVICE_ERROR
		{"the device is removed while opening the envelope", "Decrypt:ra-decrypt", "rv 0x32", 1, nil, again},                  // CKR_DEVICE_REMOVED
		{"the CA's signature cannot begin", "SignInit:ca", "rv 0x30", 1, []string{"intent", "failed"}, again},                 // CKR_DEVICE_ERROR
		{"the device is removed in the CA's signature", "Sign:ca", "rv 0x32", 1, []string{"intent", "due", "unknown"}, again}, // CKR_DEVICE_REMOVED
		{"every session is lost", "Sign:ca", "rv 0xB3", 2, []string{"intent", "failed"}, again},                               // CKR_SESSION_HANDLE_INVALID
		{"the CA's signature is wrong", "Sign:ca", "flip", 1, []string{"intent", "due", "unknown"}, again},
		{"the CA's signature does not come", "Sign:ca", "hold", 1, []string{"intent", "due", "unknown"}, again},
		{"the answer cannot be signed", "Sign:ra-sign", "rv 0x30", 1, again, []string{"repeated"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			c := newChallenge(t, s, fmt.Sprintf("token-%d.demo.example", i))
			r := request(t, d, key, c)
			listed(t, s)
			from, before := logSize(t, s), shim.Spoiled(t)
			shim.Spoil(t, tt.call, tt.effect, tt.count)
			_, err := d.Do(t.Context(), r)
			unavailable(t, err)
			if n := shim.Spoiled(t) - before; n != tt.count {
				t.Errorf("%d calls were spoiled", n)
			}
			if got := outcomes(t, s, from); !slices.Equal(got, tt.during) {
				t.Errorf("the log says %v, not %v", got, tt.during)
			}
			if len(tt.during) == 0 && !slices.ContainsFunc(lines(t, s, from), func(l audit.Line) bool {
				return l.Record.Event == "message" && l.Record.Object.String("why") == "fault of the appliance"
			}) {
				t.Error("the log does not say that the appliance failed")
			}
			shim.Spoil(t, tt.call, tt.effect, 0) // what hangs is let go
			from = logSize(t, s)
			got, err := d.Do(t.Context(), r)
			if err != nil {
				t.Fatalf("with a token that works: %v", err)
			}
			if got := outcomes(t, s, from); !slices.Equal(got, tt.after) {
				t.Errorf("then the log says %v, not %v", got, tt.after)
			}
			show(t, s, hexSerial(got.Certificate))
			_, err = d.Enroll(t.Context(), enrollment(newKey(t), c))
			if !isAnswer(err) {
				t.Errorf("the challenge is good for another certificate: %v", err)
			}
		})
	}
	stop(t, s)
	verify(t, s)
	start(t, s)
	newLedger().check(t, s, nil)
	stop(t, s)
}

// TestFaultsAreNoRefusals: five refusals end a challenge, faults of the token
// never do, also if the service is started again meanwhile.
func TestFaultsAreNoRefusals(t *testing.T) {
	s := newSite(t)
	shim := shimmed(t, s)
	start(t, s)
	c := newChallenge(t, s, "patient.demo.example")
	d, key := newDevice(t, s), newKey(t)
	for i := range 12 {
		if i == 6 {
			stop(t, s)
			start(t, s)
			d = newDevice(t, s)
		}
		shim.Spoil(t, "SignInit:ca", "rv 0x30", 1) // the listeners' own certificate is there by now
		_, err := d.Enroll(t.Context(), enrollment(key, c))
		unavailable(t, err)
	}
	if n := shim.Spoiled(t); n != 12 {
		t.Fatalf("%d faults", n)
	}
	if _, err := d.Enroll(t.Context(), enrollment(key, c)); err != nil {
		t.Error(err)
	}
	stop(t, s)
	verify(t, s)
}

// TestALostSessionIsRepaired: what the service can do something about the device
// does not notice.
func TestALostSessionIsRepaired(t *testing.T) {
	s := newSite(t)
	shim := shimmed(t, s)
	start(t, s)
	d, key := newDevice(t, s), newKey(t)
	for i, call := range []struct{ function, effect string }{
		{"Decrypt:ra-decrypt", "rv 0xB3"},     // CKR_SESSION_HANDLE_INVALID
		{"Sign:ca", "rv 0xB0"},                // CKR_SESSION_CLOSED
		{"SignInit:ca", "rv 0x82"},            // CKR_OBJECT_HANDLE_INVALID
		{"Sign:ra-sign", "rv 0xB3"},           // CKR_SESSION_HANDLE_INVALID
		{"SignInit:ra-sign", "rv 0x101"},      // CKR_USER_NOT_LOGGED_IN
		{"DecryptInit:ra-decrypt", "rv 0x60"}, // CKR_KEY_HANDLE_INVALID
	} {
		c := newChallenge(t, s, fmt.Sprintf("session-%d.demo.example", i))
		from := logSize(t, s)
		shim.Spoil(t, call.function, call.effect, 1)
		if _, err := d.Do(t.Context(), request(t, d, key, c)); err != nil || shim.Spoiled(t) != i+1 {
			t.Errorf("%s, %s: %v; %d spoiled", call.function, call.effect, err, shim.Spoiled(t))
		}
		if got := outcomes(t, s, from); !slices.Equal(got, []string{"intent", "issued"}) {
			t.Errorf("%s, %s: the log says %v", call.function, call.effect, got)
		}
	}
	stop(t, s)
	verify(t, s)
}

// TestATokenThatGoesAndComes is pulled out under a service that runs, and put in
// again: devices are told to come back, nobody starts anything, and the PIN is
// given once.
func TestATokenThatGoesAndComes(t *testing.T) {
	s := newSite(t)
	shim := shimmed(t, s)
	start(t, s)
	d, key := newDevice(t, s), newKey(t)
	c := newChallenge(t, s, "away.demo.example")
	r := request(t, d, key, c)
	logins := shim.Count(t, "Login")
	shim.Spoil(t, "*", "gone", softhsm.Always)
	for range 3 {
		_, err := d.Do(t.Context(), r)
		unavailable(t, err)
	}
	until(t, s, "degraded")
	_, err := d.Do(t.Context(), r)
	unavailable(t, err)
	shim.Heal(t)
	until(t, s, "good")
	got, err := d.Do(t.Context(), r)
	if err != nil {
		t.Fatalf("with the token back: %v", err)
	}
	show(t, s, hexSerial(got.Certificate))
	if n := shim.Count(t, "Login") - logins; n != 1 {
		t.Errorf("%d attempts with the PIN", n)
	}
	stop(t, s)
	verify(t, s)
}

// until waits for the service to say how it is.
func until(t *testing.T, s *site.Site, state string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		m, err := s.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m["state"] == state {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("it is not %s: %v", state, m)
		}
	}
}
