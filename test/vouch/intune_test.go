package vouch_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/test/intune"
	"github.com/postern-pki/postern/test/site"
)

// tuned runs a service whose devices have their challenges from a tenant of Intune.
func tuned(t *testing.T) (*site.Site, *intune.Server) {
	t.Helper()
	n := intune.New(t.Errorf)
	t.Cleanup(n.Close)
	s := serve(t, profile("tune", "{mode: intune, intune: corp}"), map[string][]byte{
		"app-secret": []byte(intune.Secret + "\n"), "roots.pem": pemOf("CERTIFICATE", n.Certificate().Raw),
	}, map[string]any{"validators": []any{map[string]any{"name": "corp", "intune": map[string]any{
		"tenant": intune.Tenant, "app": intune.App, "secret": file("app-secret"), "roots": "roots.pem", "login": n.URL, "graph": n.URL, "timeout": "5s",
	}}}})
	return s, n
}

// TestIntune enrolls a device that Intune knows, and refuses the others.
func TestIntune(t *testing.T) {
	s, n := tuned(t)
	const blob = "an encrypted blob of Intune's"
	n.Knows(blob, "phone-1.demo.example")
	d, r := request(t, s, "tune", "phone-1.demo.example", blob)
	c, err := send(t, d, r)
	if err != nil {
		t.Fatalf("%v\n%s", err, s.Tail())
	}
	told := n.Calls("successNotification")
	if len(told) != 1 || told[0].Fields["certificateSerialNumber"] != strings.ToUpper(hex.EncodeToString(c.SerialNumber.Bytes())) ||
		!bytes.Equal(told[0].CSR, n.Calls("validateRequest")[0].CSR) || told[0].Transaction != r.Expect.TransactionID {
		t.Errorf("it was told %v", told)
	}
	if again, err := send(t, d, r); err != nil || !again.Equal(c) || len(n.Calls("successNotification")) != 1 {
		t.Errorf("sent again: %v", err)
	}
	_, other := request(t, s, "tune", "phone-2.demo.example", blob)
	_, err = send(t, d, other)
	refusedAs(t, err, challenge.Say)
	if got := logged(t, s, "enroll", "refused"); len(got) != 1 || got[0].Objects("reasons")[0].String("saw") !=
		"intune corp: refused (SubjectNameMismatch): the subject is not the one that the SCEP profile gives this device" {
		t.Errorf("the log: %v", got)
	}
	nowhere(t, s, blob, intune.Secret)
	stop(t, s)
}

// TestIntuneDoesNotHear: the certificate stays here until Intune knows of it.
func TestIntuneDoesNotHear(t *testing.T) {
	s, n := tuned(t)
	const blob = "an encrypted blob of Intune's"
	n.Knows(blob, "phone-1.demo.example")
	d, r := request(t, s, "tune", "phone-1.demo.example", blob)
	n.Down("validateRequest", true)
	_, err := send(t, d, r)
	unavailable(t, err)
	n.Down("validateRequest", false)
	n.Down("successNotification", true)
	for range 2 {
		_, err = send(t, d, r)
		unavailable(t, err)
	}
	if issued := logged(t, s, "enroll", "issued"); len(issued) < 1 {
		t.Fatal("nothing was issued")
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.Down("successNotification", false)
	d, _ = request(t, s, "tune", "phone-1.demo.example", blob)
	c, err := send(t, d, r)
	if err != nil {
		t.Fatalf("%v\n%s", err, s.Tail())
	}
	if n := len(n.Calls("validateRequest")); n != 1 {
		t.Errorf("the request was validated %d times", n)
	}
	if told := n.Calls("successNotification"); len(told) != 1 || told[0].Fields["certificateSerialNumber"] != strings.ToUpper(hex.EncodeToString(c.SerialNumber.Bytes())) {
		t.Errorf("it was told %v", told)
	}
	stop(t, s)
}
