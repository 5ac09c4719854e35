package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/operator"
)

// A certificate of the operator CA gets as far as being told its key; what it may
// do is for the configuration to say.
func TestTheOperatorsListenerKnowsPeopleByTheirKeys(t *testing.T) {
	s := running
	ca, err := tls.LoadX509KeyPair(s.Path("ceremony", "operator-ca.pem"), s.Path("ceremony", "operator-ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(99), Subject: pkix.Name{CommonName: "new here"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := tls.LoadX509KeyPair(s.Path("ceremony", "operator.pem"), s.Path("ceremony", "operator.key"))
	if err != nil {
		t.Fatal(err)
	}
	journal, err := os.ReadFile(s.Journal())
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`"operators":"(127\.0\.0\.1:\d+)"`).FindAllStringSubmatch(string(journal), -1)
	if len(all) == 0 {
		t.Fatalf("the journal does not name the listener: %s", journal)
	}
	for name, tt := range map[string]struct {
		cert tls.Certificate
		code int
	}{"listed": {listed, http.StatusOK}, "new": {tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, http.StatusForbidden}} {
		client, err := s.HTTP(tt.cert)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Get("https://" + all[len(all)-1][1] + "/api/v1/challenges")
		if err != nil {
			t.Fatal(name, err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != tt.code {
			t.Errorf("%s: %s %s, %v", name, resp.Status, body, err)
		}
		if tt.code == http.StatusOK {
			continue
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		id := "key:" + hex.EncodeToString(sum[:])
		var p operator.Problem
		if err := json.Unmarshal(body, &p); err != nil || !strings.Contains(p.Hint, id) {
			t.Errorf("%s is told %s", name, body)
		}
		log, err := os.ReadFile(s.Path("state", "audit", "segments", "000000000000.jsonl"))
		if err != nil || !strings.Contains(string(log), `{"actor":{"id":"`+id+`","kind":"operator",`) {
			t.Errorf("%s is not in the log: %v", name, err)
		}
	}
}
