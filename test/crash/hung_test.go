package crash_test

import (
	"bytes"
	"crypto/rsa"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
	"github.com/postern-pki/postern/test/softhsm"
)

// keyholder is the process of that role, 0 while there is none.
func keyholder(t *testing.T, s *site.Site) int {
	t.Helper()
	all, err := s.Processes()
	if err != nil {
		t.Fatal(err)
	}
	return all["keyholder"]
}

// becomes waits for what `postern status` says, by its exit status.
func becomes(t *testing.T, s *site.Site, want int, what string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		out, stderr, code := s.Postern(t.Context(), nil, "status")
		if code == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: postern status does not become %d, but is %d: %s%s", what, want, code, out, stderr)
		}
	}
}

// A told is what a device was told.
type told struct {
	who    *job
	status int // of HTTP; 0: a certificate
	after  string
	err    error
}

// ask sends a request once, and says how it was answered.
func ask(d *site.Device, j *job, r *site.Request) told {
	answer, err := d.HTTP.Post(d.URL+"?operation=PKIOperation", "application/x-pki-message", bytes.NewReader(r.DER))
	if err != nil {
		return told{who: j, err: err}
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return told{who: j, status: answer.StatusCode, after: answer.Header.Get("Retry-After")}
	}
	body, err := io.ReadAll(answer.Body)
	if err == nil {
		_, err = client.Open(&client.Reply{DER: body}, r.Expect)
	}
	return told{who: j, err: err}
}

// TestATokenThatHangs has one call of the token's library never come back. Nothing in
// the process can help that: it ends itself, another one is there at once, and who
// was waiting is told to come again. Nobody does anything for it.
func TestATokenThatHangs(t *testing.T) {
	s := newSite(t)
	shim := shimmed(t, s)
	rewrite(t, s.Config(), func(text string) string {
		return strings.Replace(text, "\ntoken:\n", "\ntoken:\n    deadline: 4s\n", 1)
	})
	start(t, s)
	if n := shim.Count(t, "Login"); n != 1 {
		t.Fatalf("%d attempts at the PIN by the first start", n)
	}
	keys := []*rsa.PrivateKey{newKey(t), newKey(t), newKey(t), newKey(t)}
	starts, spent := 1, map[string]string{}
	for _, call := range []string{"Sign:ca", "Decrypt:ra-decrypt", "Sign:ra-sign"} {
		t.Run(call, func(t *testing.T) {
			hang(t, s, shim, call, keys, spent)
			starts++
			if n := shim.Count(t, "Login"); n != starts {
				t.Errorf("%d attempts at the PIN by %d starts", n, starts)
			}
		})
	}
	stop(t, s)
	verify(t, s)
	start(t, s)
	l := newLedger()
	l.check(t, s, spent)
	stop(t, s)
	rebuilt(t, s)
	if l.unknown != 1 {
		t.Errorf("%d intents have an unknown outcome, of 1 that was in the hands of the token", l.unknown)
	}
	if len(spent) != 3*len(keys) {
		t.Errorf("%d certificates, of %d devices", len(spent), 3*len(keys))
	}
}

// hang has one call hang while several devices ask, and sees the service through.
func hang(t *testing.T, s *site.Site, shim softhsm.Shim, call string, keys []*rsa.PrivateKey, spent map[string]string) {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer(":", "-").Replace(call))
	d := newDevice(t, s)
	defer d.HTTP.CloseIdleConnections()
	var jobs []*job
	var requests []*site.Request
	for i, key := range keys {
		c := newChallenge(t, s, name+"-"+string(rune('a'+i))+".demo.example")
		jobs = append(jobs, &job{enrollment(key, c), c})
		requests = append(requests, request(t, d, key, c))
	}
	was, from, before := keyholder(t, s), logSize(t, s), shim.Spoiled(t)
	shim.Spoil(t, call, "hang 3200", 1) // longer than anybody waits for a keyholder
	answers := make(chan told, len(jobs))
	for i, j := range jobs {
		go func() { answers <- ask(d, j, requests[i]) }()
	}
	becomes(t, s, 2, "while a call hangs")
	var away []*job
	for range jobs {
		switch a := <-answers; {
		case a.status == http.StatusServiceUnavailable && a.after != "":
			away = append(away, a.who)
		case a.status != 0 || a.err != nil:
			t.Errorf("a device was told %d, to come back after %q: %v", a.status, a.after, a.err)
		}
	}
	if n := shim.Spoiled(t) - before; n != 1 || len(away) == 0 {
		t.Errorf("%d calls hung, and %d devices were told to come again", n, len(away))
	}
	becomes(t, s, 0, "after a call hung") // by itself
	if now := keyholder(t, s); now == was || now == 0 {
		t.Errorf("the keyholder was process %d, and is %d", was, now)
	}
	// Each gets its certificate for the same request, and for no other.
	for i, j := range jobs {
		r, err := d.Do(t.Context(), requests[i])
		if err != nil {
			t.Fatalf("%s, again: %v", j.challenge.Subject, err)
		}
		spent[hexSerial(r.Certificate)] = j.challenge.ID
		if _, err := d.Enroll(t.Context(), enrollment(newKey(t), j.challenge)); !isAnswer(err) {
			t.Errorf("%s: the challenge is good for another certificate: %v", j.challenge.Subject, err)
		}
	}
	issued := 0
	for _, o := range outcomes(t, s, from) {
		if o == "issued" {
			issued++
		}
	}
	if issued != len(jobs) {
		t.Errorf("%d certificates for %d challenges: %v", issued, len(jobs), slices.Compact(outcomes(t, s, from)))
	}
}
