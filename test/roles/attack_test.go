package roles_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// withProfiles is a site whose profiles were changed.
func withProfiles(t *testing.T, from, to string) *site.Site {
	t.Helper()
	changed := strings.Replace(profiles, from, to, 1)
	if changed == profiles {
		t.Fatalf("%q is not in the profiles", from)
	}
	s, end, err := site.New(t.Context(), bin, changed)
	no(t, err)
	t.Cleanup(end)
	return s
}

// misconfigured wants the service to end before it opens anything, by the exit status
// that service managers do not start again for, and to say where the fault is.
func misconfigured(t *testing.T, what string, s *site.Site, place string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, stderr, code := site.Run(ctx, nil, filepath.Join(bin, "posternd"), "--config", s.Config())
	if code != 78 || !strings.Contains(stderr, place) {
		t.Errorf("%s: exit %d, want 78 and %s: %s", what, code, place, stderr)
	}
	if _, err := os.Stat(s.Path("state")); err == nil {
		t.Errorf("%s: there is a state", what)
	}
}

// TestAttack05AnotherValidatorReplacesTheChallenge: a profile that asks nobody, or
// somebody who is not there, does not start.
//
func TestAttack05AnotherValidatorReplacesTheChallenge(t *testing.T) {
	const line = "    challenge: {mode: one-time, ttl: 30m}\n"
	for what, to := range map[string]string{
		"no challenge": "", "an empty one": "    challenge: {}\n", "no mode": "    challenge: {ttl: 30m}\n", "none": "    challenge: {mode: none}\n",
		"a validator without its settings": "    challenge: {mode: intune}\n", "another word for it": "    validators: [intune]\n",
	} {
		s := withProfiles(t, line, to)
		misconfigured(t, what, s, "profiles[0].challenge")
	}
}

// TestAttack20DefaultPasswords: a static challenge is not taken unless it is allowed
// by name, the ceremony makes another PIN and other operators' keys each time, and
// the operators' listener knows nobody without a certificate.
//
func TestAttack20DefaultPasswords(t *testing.T) {
	misconfigured(t, "a static challenge", withProfiles(t, "mode: one-time", "mode: static"), "profiles[0].challenge.mode")
	misconfigured(t, "a static challenge in the file", withProfiles(t, "mode: one-time", "mode: static, secret: postern"), "profiles[0].challenge")
	a, b := newSite(t, nil), newSite(t, nil)
	for _, name := range []string{"hsm-pin", "operator.key", "challenge.key"} {
		one, two := must(os.ReadFile(a.Path("ceremony", name)))(t), must(os.ReadFile(b.Path("ceremony", name)))(t)
		if len(one) < 8 || string(one) == string(two) {
			t.Errorf("%s is the same at two sites, or short", name)
		}
	}
	no(t, a.Start(t.Context()))
	address := operatorsOf(t, a)
	foreign := must(tls.LoadX509KeyPair(b.Path("ceremony", "operator.pem"), b.Path("ceremony", "operator.key")))(t)
	for what, certs := range map[string][]tls.Certificate{"nobody": nil, "another site's operator": {foreign}} {
		h := must(a.HTTP(certs...))(t)
		req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/api/v1/status", nil))(t)
		req.SetBasicAuth("admin", "admin")
		if resp, err := h.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s is answered: %s", what, resp.Status)
		}
		h.CloseIdleConnections()
	}
	no(t, a.Stop())
}

// operatorsOf is the address of a running site's operators' listener.
func operatorsOf(t *testing.T, s *site.Site) string {
	t.Helper()
	_, rest, ok := strings.Cut(string(must(os.ReadFile(s.Journal()))(t)), `"operators":"`)
	if !ok {
		t.Fatal("the service does not say where its operators' listener is")
	}
	address, _, _ := strings.Cut(rest, `"`)
	return address
}

// TestAttack21ARestoredDiskArmsChallenges spends a challenge, and puts back a disk on
// which it is open: that disk is not served, and on the newest one it stays spent.
//
func TestAttack21ARestoredDiskArmsChallenges(t *testing.T) {
	s := newSite(t, nil)
	no(t, s.Start(t.Context()))
	c := must(s.NewChallenge(t.Context(), "interop", "CN=armed.demo.example"))(t)
	no(t, s.Stop())
	open := now(t, s)

	spend := func() error {
		d := must(s.Device(t.Context(), "interop"))(t)
		defer d.HTTP.CloseIdleConnections()
		_, err := d.Enroll(t.Context(), enrollment(newKey(t), c))
		return err
	}
	no(t, s.Start(t.Context()))
	no(t, spend())
	no(t, s.Stop())
	spent := now(t, s)

	open.back(t, s, "state", "keyholder")
	refuses(t, "the disk on which the challenge is open", s, "an old disk was put back")
	open.back(t, s, "state")
	no(t, os.RemoveAll(s.Path("keyholder")))
	refuses(t, "that disk without the keyholder's folder", s, "maintenance")

	spent.back(t, s, "state", "keyholder")
	no(t, s.Start(t.Context()))
	if e, ok := errors.AsType[*client.FailError](spend()); !ok || e.Name != "badRequest" {
		t.Errorf("the spent challenge: %v", e)
	}
	no(t, s.Stop())
}
