package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/test/site"
)

// siteBy makes a site by one of the plans, which its issuer is called after.
func siteBy(ctx context.Context, t *testing.T, plan string) *site.Site {
	t.Helper()
	root, err := site.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin, end, err := site.Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	s, out, err := site.Make(ctx, filepath.Join(t.TempDir(), "site"), site.Options{
		Bin: bin, Plan: filepath.Join(root, "hsm/ceremony/scripts", plan+".yaml"),
		Profiles: strings.ReplaceAll(site.Profiles, "issuer: demo", "issuer: "+plan), DevicePort: "0", OperatorPort: "0",
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return s
}

// What a ceremony with a root on another token leaves is what the service needs:
// it starts, tells devices the whole chain, and a device enrolls below it.
func TestTheServiceRunsOnATwoTierCeremony(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s := siteBy(ctx, t, "two-tier-offline-root")
	if err := s.Start(ctx); err != nil {
		t.Fatalf("%v\n%s", err, s.Tail())
	}
	defer func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}()
	c, err := s.NewChallenge(ctx, "demo", "CN=two-tier.demo.example,O=Example Corp")
	if err != nil {
		t.Fatal(err)
	}
	url, err := s.URL(ctx, "demo")
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := s.Fingerprint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "challenge")
	if err := os.WriteFile(secret, []byte(c.Challenge), 0o600); err != nil {
		t.Fatal(err)
	}
	got := filepath.Join(dir, "got")
	if said, errOut, code := s.Postern(ctx, nil, "scep", "enroll", "--url", url, "--tls-ca", s.Path("ceremony", "root.pem"), "--ca-fingerprint", fingerprint,
		"--subject", "CN=two-tier.demo.example,O=Example Corp", "--challenge-file", secret, "--out", got); code != 0 {
		t.Fatalf("enroll: %d %s\n%s", code, said, errOut)
	}
	files, err := filepath.Glob(filepath.Join(got, "*.pem"))
	if err != nil {
		t.Fatal(files, err)
	}
	if said, errOut, code := site.Run(ctx, nil, "openssl", "verify", "-x509_strict", "-CAfile", s.Path("ceremony", "root.pem"), "-untrusted", s.Path("ceremony", "ca.pem"), filepath.Join(got, "cert.pem")); code != 0 {
		t.Errorf("openssl verify: %s%s; there is %v", said, errOut, files)
	}
	client, err := s.Device(ctx, "demo")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(client.CA.Chain); n == 0 {
		t.Errorf("devices are told a chain of %d certificates above the CA", n)
	}
}

// The log begins with what the ceremony's transcript says: one that is not closed, or
// was changed, is no beginning.
func TestTheServiceWantsAClosedTranscript(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s := siteBy(ctx, t, "demo")
	path := s.Path("ceremony", "transcript.jsonl")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"not closed": whole[:bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1],
		"changed":    bytes.Replace(whole, []byte("CKA_LOCAL"), []byte("CKA_LOCAK"), 1),
	} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(ctx); err == nil || !strings.Contains(s.Tail(), "postern-ceremony verify") {
			t.Errorf("%s: %v\n%s", name, err, s.Tail())
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatalf("%v\n%s", err, s.Tail())
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

// A single RA key serves: devices are told one RA certificate, one enrolls with it, and
// the status calls it weaker.
func TestTheServiceRunsWithASingleRAKey(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	s := siteBy(ctx, t, "single-ra")
	if said, errOut, code := site.Run(ctx, nil, filepath.Join(s.Bin(), "postern-ceremony"), "verify", s.Path("ceremony", "transcript.jsonl")); code != 0 {
		t.Errorf("verify: %s%s", said, errOut)
	}
	if err := s.Start(ctx); err != nil {
		t.Fatalf("%v\n%s", err, s.Tail())
	}
	defer func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}()
	if said, _, _ := s.Postern(ctx, nil, "status"); !strings.Contains(said, "weaker") || !strings.Contains(said, "a single RA key") {
		t.Errorf("status: %s", said)
	}
	client, err := s.Device(ctx, "demo")
	if err != nil {
		t.Fatal(err)
	}
	if !client.CA.RASign.Equal(client.CA.RADecrypt) || client.CA.RASign.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
		t.Errorf("the RA's usage is %b", client.CA.RASign.KeyUsage)
	}
	c, err := s.NewChallenge(ctx, "demo", "CN=single.demo.example,O=Example Corp")
	if err != nil {
		t.Fatal(err)
	}
	url, err := s.URL(ctx, "demo")
	if err != nil {
		t.Fatal(err)
	}
	fingerprint, err := s.Fingerprint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	secret := filepath.Join(dir, "challenge")
	if err := os.WriteFile(secret, []byte(c.Challenge), 0o600); err != nil {
		t.Fatal(err)
	}
	if body := get(ctx, t, s.Path("ceremony", "ca.pem"), url+"?operation=GetCACert"); bytes.Count(body, client.CA.RASign.Raw) != 1 {
		t.Errorf("GetCACert does not give the RA certificate once, in %d octets", len(body))
	}
	got := filepath.Join(dir, "got")
	if said, errOut, code := s.Postern(ctx, nil, "scep", "enroll", "--url", url, "--tls-ca", s.Path("ceremony", "ca.pem"), "--ca-fingerprint", fingerprint,
		"--subject", "CN=single.demo.example,O=Example Corp", "--challenge-file", secret, "--out", got); code != 0 {
		t.Fatalf("enroll: %d %s\n%s", code, said, errOut)
	}
	if said, errOut, code := site.Run(ctx, nil, "openssl", "verify", "-x509_strict", "-CAfile", s.Path("ceremony", "ca.pem"), filepath.Join(got, "cert.pem")); code != 0 {
		t.Errorf("openssl verify: %s%s", said, errOut)
	}
}

func get(ctx context.Context, t *testing.T, ca, url string) []byte {
	t.Helper()
	pem, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err = errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return body
}
