package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/policy"
)

const profiles = `profiles:
  - name: wifi
    protocols: [scep]
    issuer: corp
    challenge: {mode: one-time, ttl: 30m}
    approve: automatic
    key: {rsa: {min: 2048, max: 4096}}
    subject:
      CN: {pattern: '[a-z]+\.corp\.example', required: true}
    usage: {key: {rsa: [digitalSignature]}, extended: [clientAuth]}
    validity: {for: 365d}
`

const good = `version: 1
state: state
origin: corp.example/log
transcript: transcript.jsonl
profiles: [profiles.yaml]
token:
  module: /usr/lib/softhsm/libsofthsm2.so
  serial: "0123456789abcdef"
  pin: {file: pin}
keys:
  - {name: ca, purpose: ca, label: ca}
  - {name: ra-sign, purpose: ra-sign, label: ra-sign}
  - {name: ra-decrypt, purpose: ra-decrypt, label: ra-decrypt}
  - {name: tls, purpose: tls, label: tls}
  - {name: audit, purpose: audit, label: audit}
issuers:
  - name: corp
    ca: {key: ca, certificate: ca.pem}
    ra_sign: {key: ra-sign, certificate: ra-sign.pem}
    ra_decrypt: {key: ra-decrypt, certificate: ra-decrypt.pem}
audit: {key: audit, certificate: audit.pem}
challenges: {key: {file: challenge.key}}
devices: {listen: ":8443", url: "https://scep.corp.example"}
operators: {socket: operator.sock, listen: ":9443", ca: operator-ca.pem}
tls: {mode: internal, key: tls, issuer: corp, names: [scep.corp.example]}
`

// site writes the files that a configuration names.
func site(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	caKey, ca := certificate(t, nil, nil, x509.KeyUsageCertSign|x509.KeyUsageCRLSign)
	write := func(name string, cert *x509.Certificate) {
		put(t, dir, name, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	}
	write("ca.pem", ca)
	agent := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1}
	for name, usage := range map[string]x509.KeyUsage{
		"ra-sign.pem": x509.KeyUsageDigitalSignature, "ra-decrypt.pem": x509.KeyUsageKeyEncipherment,
	} {
		_, c := certificate(t, caKey, ca, usage, agent)
		write(name, c)
	}
	_, audit := certificate(t, caKey, ca, x509.KeyUsageDigitalSignature)
	write("audit.pem", audit)
	_, operators := certificate(t, nil, nil, x509.KeyUsageCertSign)
	write("operator-ca.pem", operators)
	again := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "another name"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter.Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, again, again, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	write("ca-again.pem", &x509.Certificate{Raw: der})
	// A CA below a root, for the files of a second issuer.
	rootKey, root := certificate(t, nil, nil, x509.KeyUsageCertSign)
	write("root.pem", root)
	below := &x509.Certificate{SerialNumber: big.NewInt(8), Subject: pkix.Name{CommonName: "below"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	belowKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if der, err = x509.CreateCertificate(rand.Reader, below, root, belowKey.Public(), rootKey); err != nil {
		t.Fatal(err)
	}
	if below, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	write("below.pem", below)
	for name, usage := range map[string]x509.KeyUsage{"below-sign.pem": x509.KeyUsageDigitalSignature, "below-decrypt.pem": x509.KeyUsageKeyEncipherment} {
		_, c := certificate(t, belowKey, below, usage, agent)
		write(name, c)
	}
	put(t, dir, "transcript.jsonl", "{}\n")
	put(t, dir, "profiles.yaml", profiles)
	return dir
}

func put(t testing.TB, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func certificate(t testing.TB, parentKey *ecdsa.PrivateKey, parent *x509.Certificate, usage x509.KeyUsage, extended ...asn1.ObjectIdentifier) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "test"}, KeyUsage: usage, UnknownExtKeyUsage: extended,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: parent == nil,
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, c
}

func load(t testing.TB, dir, text string) (*config.Config, []policy.Fault) {
	t.Helper()
	put(t, dir, "postern.yaml", text)
	c, err := config.Load(filepath.Join(dir, "postern.yaml"))
	if err == nil {
		return c, nil
	}
	faults, ok := errors.AsType[*policy.LoadError](err)
	if !ok {
		t.Fatalf("Load: %v, want faults", err)
	}
	return nil, faults.Faults
}

func TestAGoodConfigurationIsResolved(t *testing.T) {
	dir := site(t)
	c, faults := load(t, dir, good)
	if faults != nil {
		t.Fatal(faults)
	}
	if c.State != filepath.Join(dir, "state") || c.Tokens[0].PINPath != filepath.Join(dir, "pin") || c.Issuers[0].CA == nil || c.OperatorCA == nil {
		t.Errorf("not resolved: %+v", c)
	}
	if c.Tokens[0].Deadline != 5*time.Second || c.CheckpointEvery != time.Minute {
		t.Errorf("defaults: %v, %v", c.Tokens[0].Deadline, c.CheckpointEvery)
	}
}

func TestFaultsNameTheirPlace(t *testing.T) {
	dir := site(t)
	for name, tt := range map[string]struct {
		from, to      string
		path, nearest string
		line          int
	}{
		"an unknown key":                      {"  serial:", "  serail:", "token.serail", "serial", 8},
		"an unknown section":                  {"audit: {", "audti: {", "audti", "audit", 21},
		"a key given twice":                   {"version: 1", "version: 1\nversion: 1", "version", "", 2},
		"text for a number":                   {"version: 1", "version: one", "version", "", 1},
		"another version":                     {"version: 1", "version: 2", "version", "", 1},
		"a number for text":                   {"origin: corp.example/log", "origin: 7", "origin", "", 3},
		"a key of another purpose":            {"ra_sign: {key: ra-sign,", "ra_sign: {key: ra-decrypt,", "issuers[0].ra_sign.key", "", 19},
		"a key that is nowhere":               {"ra_sign: {key: ra-sign,", "ra_sign: {key: ra-sgn,", "issuers[0].ra_sign.key", "ra-sign", 19},
		"an RA certificate of another usage":  {"certificate: ra-sign.pem", "certificate: ra-decrypt.pem", "issuers[0].ra_sign.certificate", "", 19},
		"an RA certificate of no RA":          {"certificate: ra-sign.pem", "certificate: audit.pem", "issuers[0].ra_sign.certificate", "", 19},
		"the devices' CA for operators":       {"ca: operator-ca.pem", "ca: ca.pem", "operators.ca", "", 24},
		"the devices' CA by another name":     {"ca: operator-ca.pem", "ca: ca-again.pem", "operators.ca", "", 24},
		"the devices' CA and no address":      {`listen: ":9443", ca: operator-ca.pem`, "ca: ca.pem", "operators.ca", "", 24},
		"plain HTTP":                          {"https://scep", "http://scep", "devices.url", "", 23},
		"no port":                             {`listen: ":8443"`, `listen: "8443"`, "devices.listen", "", 23},
		"two sources of a PIN":                {"pin: {file: pin}", "pin: {file: pin, credential: pin}", "token.pin", "", 9},
		"a path for a credential":             {"pin: {file: pin}", "pin: {credential: ../pin}", "token.pin.credential", "", 9},
		"a missing file":                      {"certificate: audit.pem", "certificate: gone.pem", "audit.certificate", "", 21},
		"a default profile that is not there": {`listen: ":8443"`, `default_profile: wiif, listen: ":8443"`, "devices.default_profile", "wifi", 23},
		"an alias":                            {"state: state", "state: &s state", "state", "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, tt.from, tt.to, 1)
			if text == good {
				t.Fatal("the case changes nothing")
			}
			_, faults := load(t, dir, text)
			for _, f := range faults {
				if f.Path == tt.path && f.Line == tt.line && f.Nearest == tt.nearest && strings.HasSuffix(f.File, "postern.yaml") {
					return
				}
			}
			t.Errorf("%v, want a fault at line %d, %s, nearest %q", faults, tt.line, tt.path, tt.nearest)
		})
	}
}

func TestNoCAAboveTheDevicesSignsForOperators(t *testing.T) {
	twoTier := strings.NewReplacer("certificate: ca.pem}", "certificate: below.pem}\n    chain: [root.pem]",
		"certificate: ra-sign.pem", "certificate: below-sign.pem", "certificate: ra-decrypt.pem", "certificate: below-decrypt.pem").Replace(good)
	dir := site(t)
	if _, faults := load(t, dir, twoTier); faults != nil {
		t.Fatal(faults)
	}
	for _, ca := range []string{"root.pem", "below.pem"} {
		_, faults := load(t, dir, strings.Replace(twoTier, "ca: operator-ca.pem", "ca: "+ca, 1))
		if len(faults) != 1 || faults[0].Path != "operators.ca" {
			t.Errorf("%s: %v, want a fault at operators.ca", ca, faults)
		}
	}
}

func TestEveryFaultIsReportedAtOnce(t *testing.T) {
	text := strings.NewReplacer("origin: corp.example/log", "origin: Corp", "mode: internal", "mode: none", `listen: ":8443"`, `listen: "x"`).Replace(good)
	if _, faults := load(t, site(t), text); len(faults) != 3 {
		t.Errorf("%d faults, want 3: %v", len(faults), faults)
	}
}

// Covers: S-007
func TestADefaultProfile(t *testing.T) {
	c, faults := load(t, site(t), strings.Replace(good, `listen: ":8443"`, `default_profile: wifi, listen: ":8443"`, 1))
	if faults != nil || c.Devices.DefaultProfile != "wifi" {
		t.Errorf("%v", faults)
	}
}

func TestAProfileWithoutItsIssuerIsRefused(t *testing.T) {
	dir := site(t)
	put(t, dir, "profiles.yaml", strings.Replace(profiles, "issuer: corp", "issuer: crop", 1))
	_, faults := load(t, dir, good)
	if len(faults) != 1 || faults[0].Nearest != "corp" || !strings.HasSuffix(faults[0].File, "profiles.yaml") {
		t.Errorf("%v, want one fault in profiles.yaml that is near corp", faults)
	}
}

func FuzzLoad(f *testing.F) {
	dir := site(f)
	f.Add(good)
	f.Add("version: 1\n")
	f.Add("a: &a [*a]\n")
	f.Add("keys: [{}]\nissuers: [{}]\n")
	f.Add("? [a]\n: b\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, faults := load(t, dir, text)
		if (c == nil) == (len(faults) == 0) {
			t.Errorf("neither a configuration nor faults, or both: %v, %v", c, faults)
		}
	})
}
