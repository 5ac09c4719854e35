package scep_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep"
)

// A source that gets one envelope after the other wrong is told to come back
// later, before the RA key is asked; another source is served, and after a while so
// is this one.
//
// Covers: S-013, S-087
func TestBrokenEnvelopesHaveABudget(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	from := ""
	h := scep.NewHandler(scep.Options{Authority: w, Keys: w, Now: func() time.Time { return now }, Sleep: func(context.Context, time.Duration) {}})
	w.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		r.RemoteAddr = from
		h.ServeHTTP(rw, r)
	})
	broken := w.message(t, func(r *request) { r.csr = func([]byte) []byte { return []byte("no CSR") } })
	from = "192.0.2.7:4711"
	for range 60 {
		if r := w.certRep(t, w.post(t, broken)); r.status != "2" || r.failInfo != "1" {
			t.Fatalf("status %q, failInfo %q", r.status, r.failInfo)
		}
	}
	w.decrypts = 0
	from = "192.0.2.7:9999" // another port is no other source
	if r := w.post(t, broken); r.status != http.StatusTooManyRequests || r.header.Get("Retry-After") == "" || w.decrypts != 0 {
		t.Errorf("the next: status %d after %d decryptions", r.status, w.decrypts)
	}
	if last := w.rejected[len(w.rejected)-1]; last.Why != "too many broken envelopes from this source" {
		t.Errorf("recorded as %q", last.Why)
	}
	from = "192.0.2.8:4711"
	if r := w.certRep(t, w.post(t, w.message(t, nil))); r.status != "0" {
		t.Errorf("another source: status %q", r.status)
	}
	from = "192.0.2.7:4711"
	now = now.Add(2 * time.Second)
	if r := w.certRep(t, w.post(t, w.message(t, nil))); r.status != "0" {
		t.Errorf("after a while: status %q", r.status)
	}
}
