package acts_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/audit/jcs"
)

func order() acts.Order {
	return acts.NewOrder(acts.CreateChallenges, acts.Parameters{Challenges: []acts.ChallengeRequest{
		{Profile: "wifi", Subject: "CN=a.corp.example"}, {Profile: "wifi", Subject: `CN=b "ü" <&>`, DNS: []string{"b.corp.example"}, TTL: "5m"},
	}}, "corp.example/log", acts.Place{Size: 7, Last: strings.Repeat("0f", 32)}, time.Date(2027, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600)))
}

func TestTheCanonicalFormSaysEverything(t *testing.T) {
	o := order()
	got, err := o.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"expires":"2027-01-02T02:04:05Z","id":"` + o.ID + `","name":"challenge.batch","origin":"corp.example/log",` +
		`"parameters":{"challenges":[{"profile":"wifi","subject":"CN=a.corp.example"},` +
		`{"dns":["b.corp.example"],"profile":"wifi","subject":"CN=b \"ü\" <&>","ttl":"5m"}]},` +
		`"place":{"last":"` + strings.Repeat("0f", 32) + `","size":7},"type":"postern operator act 1"}`
	if string(got) != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

func TestEachKindOfKeySigns(t *testing.T) {
	message := []byte("an order")
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{"Ed25519": ed}
	for name, c := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521(), "P-224": elliptic.P224()} {
		if keys[name], err = ecdsa.GenerateKey(c, rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	if keys["RSA-2048"], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	if keys["RSA-1024"], err = rsa.GenerateKey(rand.Reader, 1024); err != nil {
		t.Fatal(err)
	}
	for name, key := range keys {
		s, err := acts.Sign(key, message)
		if weak := name == "P-224" || name == "RSA-1024"; weak {
			if !errors.Is(err, acts.ErrKey) {
				t.Errorf("%s signs: %v", name, err)
			}
			continue
		}
		if err != nil || s.Verify(message) != nil || !strings.HasPrefix(s.ID(), "key:") || len(s.ID()) != 68 {
			t.Errorf("%s: %v, %v, %s", name, err, s.Verify(message), s.ID())
		}
		if err := s.Verify([]byte("another")); !errors.Is(err, acts.ErrSignature) {
			t.Errorf("%s verifies another message: %v", name, err)
		}
		s.Value[len(s.Value)/2] ^= 1
		if err := s.Verify(message); !errors.Is(err, acts.ErrSignature) {
			t.Errorf("%s verifies with a bit changed: %v", name, err)
		}
		s.SPKI = append(bytes.Clone(s.SPKI), 0)
		if err := s.Verify(message); !errors.Is(err, acts.ErrKey) {
			t.Errorf("%s: a key with an octet more: %v", name, err)
		}
	}
}

func TestWhatIsNoOrder(t *testing.T) {
	good := func(change func(*acts.Signed)) string {
		s := acts.Signed{Order: order(), Signatures: []acts.Signature{{}}}
		change(&s)
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	whole := good(func(*acts.Signed) {})
	if _, err := acts.ParseSigned([]byte(whole)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"nothing":              "",
		"something behind":     whole + "{}",
		"cut short":            whole[:len(whole)-1],
		"an unknown field":     strings.Replace(whole, `"name"`, `"mane"`, 1),
		"a file too large":     whole + strings.Repeat(" ", 128<<10),
		"an order too large":   good(func(s *acts.Signed) { s.Order.Parameters.Challenges[0].Subject = strings.Repeat("x", acts.MaxOrder) }),
		"too many signatures":  good(func(s *acts.Signed) { s.Signatures = make([]acts.Signature, acts.MaxSignatures+1) }),
		"another type":         good(func(s *acts.Signed) { s.Order.Type = "postern operator act 2" }),
		"no act":               good(func(s *acts.Signed) { s.Order.Act = "" }),
		"no parameters":        good(func(s *acts.Signed) { s.Order.Parameters = acts.Parameters{} }),
		"one for a batch":      good(func(s *acts.Signed) { s.Order.Parameters.Challenges = s.Order.Parameters.Challenges[:1] }),
		"a batch for one":      good(func(s *acts.Signed) { s.Order.Act = acts.CreateChallenge }),
		"parameters of two":    good(func(s *acts.Signed) { s.Order.Parameters.Challenge = "c" }),
		"a reason for a batch": good(func(s *acts.Signed) { s.Order.Parameters.Reason = "x" }),
		"a ruling on nothing": good(func(s *acts.Signed) {
			s.Order.Act, s.Order.Parameters = acts.DenyPending, acts.Parameters{Reason: "x", Digest: s.Order.Place.Last}
		}),
		"a ruling for nothing": good(func(s *acts.Signed) {
			s.Order.Act, s.Order.Parameters = acts.DenyPending, acts.Parameters{Pending: "x", Digest: s.Order.Place.Last}
		}),
		"a ruling on anything": good(func(s *acts.Signed) {
			s.Order.Act, s.Order.Parameters = acts.ApprovePending, acts.Parameters{Pending: "x", Reason: "x"}
		}),
		"a revocation for nothing": good(func(s *acts.Signed) {
			s.Order.Act, s.Order.Parameters = acts.RevokeCertificate, acts.Parameters{Certificate: "0a"}
		}),
		"a revocation of nothing": good(func(s *acts.Signed) {
			s.Order.Act, s.Order.Parameters = acts.RevokeCertificate, acts.Parameters{Reason: "superseded"}
		}),
		"a revocation of two things": good(func(s *acts.Signed) {
			s.Order.Act, s.Order.Parameters = acts.RevokeCertificate, acts.Parameters{Certificate: "0a", Reason: "superseded", Challenge: "c"}
		}),
		"no place":              good(func(s *acts.Signed) { s.Order.Place = acts.Place{} }),
		"a place far away":      good(func(s *acts.Signed) { s.Order.Place.Size = 1 << 60 }),
		"a hash in capitals":    good(func(s *acts.Signed) { s.Order.Place.Last = strings.ToUpper(s.Order.Place.Last) }),
		"no origin":             good(func(s *acts.Signed) { s.Order.Origin = "" }),
		"an id of another form": good(func(s *acts.Signed) { s.Order.ID = strings.ToUpper(s.Order.ID) }),
		"another zone":          good(func(s *acts.Signed) { s.Order.Expires = "2027-01-02T03:04:05+01:00" }),
		"parts of a second":     good(func(s *acts.Signed) { s.Order.Expires = "2027-01-02T03:04:05.5Z" }),
		"no end":                good(func(s *acts.Signed) { s.Order.Expires = "" }),
	} {
		if _, err := acts.ParseSigned([]byte(text)); !errors.Is(err, acts.ErrForm) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseSigned(f *testing.F) {
	data, err := json.Marshal(acts.Signed{Order: order(), Signatures: []acts.Signature{{SPKI: []byte{1}, Value: []byte{2}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"act":{"parameters":{"challenge":"x"}},"signatures":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := acts.ParseSigned(data)
		if err != nil {
			return
		}
		canonical, err := s.Order.Canonical()
		if err != nil || len(canonical) > acts.MaxOrder {
			t.Fatalf("%d octets, %v", len(canonical), err)
		}
		if _, err := jcs.Parse(canonical); err != nil {
			t.Errorf("not canonical: %v: %s", err, canonical)
		}
		for _, sig := range s.Signatures {
			_ = sig.Verify(canonical)
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if s, err = acts.ParseSigned(again); err != nil {
			return // larger, written out
		}
		if other, err := s.Order.Canonical(); err != nil || !bytes.Equal(canonical, other) {
			t.Errorf("%v: %s became %s", err, canonical, other)
		}
	})
}
