package issuer_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
)

// statusKeys sign as the holder of both keys does.
type statusKeys struct{ ca, ocsp crypto.Signer }

func (k statusKeys) SignCRL(_ context.Context, _ string, tbs []byte, _ uint64) ([]byte, error) {
	return crypto.SignMessage(k.ca, rand.Reader, tbs, crypto.SHA256)
}

func (k statusKeys) SignOCSP(_ context.Context, _ string, data []byte) ([]byte, error) {
	return crypto.SignMessage(k.ocsp, rand.Reader, data, crypto.SHA256)
}

// list names three certificates, of which two have serial numbers that begin with a one.
func list(now time.Time) issuer.CRL {
	return issuer.CRL{Number: 200, ThisUpdate: now, NextUpdate: now.Add(time.Hour), Entries: []issuer.Revoked{
		{Serial: "01", At: now}, {Serial: "80ff", Reason: issuer.KeyCompromise, At: now.Add(-time.Hour)},
		{Serial: "ff000000000000000000000000000001", Reason: issuer.PrivilegeWithdrawn, At: time.Date(2051, 1, 1, 0, 0, 0, 0, time.UTC)},
	}}
}

func TestACRLSaysWhatItWasMadeOf(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	i, _, ca := newIssuer(t, key)
	now := time.Now().UTC().Truncate(time.Second)
	for name, c := range map[string]issuer.CRL{"some": list(now), "none": {Number: 1, ThisUpdate: now, NextUpdate: now.Add(time.Hour)}} {
		tbs, in, err := i.TBSCertList(c)
		if err != nil {
			t.Fatal(name, err)
		}
		der, err := i.SignCRL(t.Context(), statusKeys{ca: key}, tbs, 1)
		if err != nil {
			t.Fatal(name, err)
		}
		crl, err := x509.ParseRevocationList(der)
		if err != nil || crl.CheckSignatureFrom(ca) != nil || crl.Number.Uint64() != c.Number || in.Number != c.Number {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(crl.AuthorityKeyId, ca.SubjectKeyId) || !crl.ThisUpdate.Equal(c.ThisUpdate) || !crl.NextUpdate.Equal(c.NextUpdate) || len(crl.Extensions) != 2 {
			t.Errorf("%s: %+v", name, crl)
		}
		var got []issuer.Revoked
		for _, e := range crl.RevokedCertificateEntries {
			got = append(got, issuer.Revoked{Serial: hex.EncodeToString(e.SerialNumber.Bytes()), Reason: e.ReasonCode, At: e.RevocationTime})
			if has := len(e.Extensions) > 0; has != (e.ReasonCode != 0) {
				t.Errorf("%s: an entry of reason %d has %d extensions", name, e.ReasonCode, len(e.Extensions))
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.Entries) {
			t.Errorf("%s: %v, want %v", name, got, c.Entries)
		}
		parsed, err := issuer.ParseTBSCertList(tbs)
		if err != nil || fmt.Sprint(parsed.CRL) != fmt.Sprint(c) {
			t.Errorf("%s: read as %+v, %v", name, parsed, err)
		}
	}
	for name, c := range map[string]issuer.CRL{
		"a serial that is none": {Number: 1, ThisUpdate: now, NextUpdate: now, Entries: []issuer.Revoked{{Serial: "xx", At: now}}},
		"no serial":             {Number: 1, ThisUpdate: now, NextUpdate: now, Entries: []issuer.Revoked{{Serial: "00", At: now}}},
		"a hold":                {Number: 1, ThisUpdate: now, NextUpdate: now, Entries: []issuer.Revoked{{Serial: "01", At: now, Reason: 6}}},
	} {
		if _, _, err := i.TBSCertList(c); !errors.Is(err, issuer.ErrStatus) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The holder of the key signs a list by its own limits.
func TestTheKeysLimitsOfLists(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	i, _, ca := newIssuer(t, key)
	limits := issuer.Limits{Issuer: ca.RawSubject, IssuerSPKI: ca.RawSubjectPublicKeyInfo, SubjectKeyID: ca.SubjectKeyId, MaxStatus: time.Hour}
	now := time.Now().UTC().Truncate(time.Second)
	tbs, in, err := i.TBSCertList(list(now))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(tbs *[]byte, in *audit.CRLIntent, l *issuer.Limits, now *time.Time)
		want   error
	}{
		"itself":           {func(*[]byte, *audit.CRLIntent, *issuer.Limits, *time.Time) {}, nil},
		"another digest":   {func(_ *[]byte, in *audit.CRLIntent, _ *issuer.Limits, _ *time.Time) { in.Digest = "00" + in.Digest[2:] }, issuer.ErrMismatch},
		"another number":   {func(_ *[]byte, in *audit.CRLIntent, _ *issuer.Limits, _ *time.Time) { in.Number++ }, issuer.ErrMismatch},
		"another name":     {func(_ *[]byte, _ *audit.CRLIntent, l *issuer.Limits, _ *time.Time) { l.Issuer = []byte{0x30, 0} }, issuer.ErrStatus},
		"another key's id": {func(_ *[]byte, _ *audit.CRLIntent, l *issuer.Limits, _ *time.Time) { l.SubjectKeyID = []byte{1} }, issuer.ErrStatus},
		"longer":           {func(_ *[]byte, _ *audit.CRLIntent, l *issuer.Limits, _ *time.Time) { l.MaxStatus = time.Hour - 1 }, issuer.ErrStatus},
		"no limit":         {func(_ *[]byte, _ *audit.CRLIntent, l *issuer.Limits, _ *time.Time) { l.MaxStatus = 0 }, issuer.ErrStatus},
		"later":            {func(_ *[]byte, _ *audit.CRLIntent, _ *issuer.Limits, now *time.Time) { *now = now.Add(3 * time.Minute) }, issuer.ErrStatus},
		"earlier": {func(_ *[]byte, _ *audit.CRLIntent, _ *issuer.Limits, now *time.Time) {
			*now = now.Add(-3 * time.Minute)
		}, issuer.ErrStatus},
		"a key of another kind": {func(_ *[]byte, _ *audit.CRLIntent, l *issuer.Limits, _ *time.Time) {
			l.IssuerSPKI = caOf(t, ecKey(t, elliptic.P384()), nil).RawSubjectPublicKeyInfo
		}, issuer.ErrStatus},
	} {
		b, in, l, at := bytes.Clone(tbs), in, limits, now
		c.change(&b, &in, &l, &at)
		if err := l.CheckCRL(b, in, at); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// responder is a delegated one of a CA.
func responder(t testing.TB, i *issuer.Issuer, ca *x509.Certificate, caKey crypto.Signer, change func(*x509.Certificate)) (*issuer.Responder, statusKeys, error) {
	t.Helper()
	keys := statusKeys{ca: caKey, ocsp: ecKey(t, elliptic.P256())}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "OCSP"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, Value: asn1.NullBytes}},
	}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, keys.ocsp.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	r, err := issuer.NewResponder(i, cert, keys)
	return r, keys, err
}

func TestAnAnswerSaysWhatItWasMadeOf(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	i, _, ca := newIssuer(t, key)
	r, _, err := responder(t, i, ca, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	limits, err := issuer.NewOCSPLimits(r.Certificate(), ca, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := responder(t, i, ca, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := other.ResponseData(issuer.Answer{Hash: crypto.SHA1, Serial: "01", ThisUpdate: now, NextUpdate: now.Add(time.Hour)})
	if err != nil || !errors.Is(limits.Check(theirs, now), issuer.ErrStatus) {
		t.Errorf("another responder's answer: %v, %v", err, limits.Check(theirs, now))
	}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		for name, revoked := range map[string]*issuer.Revoked{"good": nil, "burnt": {At: now}, "revoked": {Reason: issuer.Superseded, At: now.Add(-time.Hour)}} {
			a := issuer.Answer{Hash: h, Serial: "80ff", Revoked: revoked, ThisUpdate: now, NextUpdate: now.Add(time.Hour)}
			der, err := r.Respond(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			got, err := ocsp.ParseResponse(der, ca)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want := ocsp.Good
			if revoked != nil {
				want = ocsp.Revoked
			}
			if got.Status != want || got.SerialNumber.Int64() != 0x80ff || got.IssuerHash != h || !got.NextUpdate.Equal(a.NextUpdate) || got.Certificate == nil || len(got.ResponderKeyHash) != 20 {
				t.Errorf("%s: %+v", name, got)
			}
			if revoked != nil && (got.RevocationReason != revoked.Reason || !got.RevokedAt.Equal(revoked.At)) {
				t.Errorf("%s: for %d at %s", name, got.RevocationReason, got.RevokedAt)
			}
			data, err := r.ResponseData(a)
			if err != nil || limits.Check(data, now) != nil {
				t.Errorf("%s: %v, %v", name, err, limits.Check(data, now))
			}
			if limits.Check(data, now.Add(time.Hour)) == nil {
				t.Errorf("%s: an old answer may be signed", name)
			}
		}
	}
}

func TestAResponderIsNothingElse(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	i, _, ca := newIssuer(t, key)
	for name, change := range map[string]func(*x509.Certificate){
		"another usage":      func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement },
		"another purpose":    func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) },
		"no purpose":         func(c *x509.Certificate) { c.ExtKeyUsage = nil },
		"without nocheck":    func(c *x509.Certificate) { c.ExtraExtensions = nil },
		"a critical nocheck": func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = true },
		"a CA":               func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true },
	} {
		if _, _, err := responder(t, i, ca, key, change); !errors.Is(err, issuer.ErrCA) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := ecKey(t, elliptic.P256())
	if _, _, err := responder(t, i, caOf(t, other, nil), other, nil); !errors.Is(err, issuer.ErrCA) {
		t.Errorf("of another CA: %v", err)
	}
}

func TestReasonsHaveTheNamesOfTheRFC(t *testing.T) {
	var names []string
	for n := range 16 {
		if name := issuer.Reason(n); name != "" {
			names = append(names, name)
			if code, ok := issuer.ReasonOf(name); !ok || code != n {
				t.Errorf("%s is %d", name, code)
			}
		}
	}
	if want := []string{"unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation", "privilegeWithdrawn"}; !slices.Equal(names, want) {
		t.Errorf("%v", names)
	}
}

// FuzzTBSCertList checks that no octets panic the parser, and that what it takes for a
// list is made again of what it read.
func FuzzTBSCertList(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	i, _, _ := newIssuer(f, key)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []issuer.CRL{list(now), {Number: 1, ThisUpdate: now, NextUpdate: now}} {
		tbs, _, err := i.TBSCertList(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(tbs)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := issuer.ParseTBSCertList(b)
		if err != nil {
			return
		}
		again, _, err := i.TBSCertList(l.CRL)
		if err != nil {
			t.Fatalf("%x is read as %+v, which is no list: %v", b, l, err)
		}
		// But for the CA's own name, algorithm and identifier.
		if ours, err := issuer.ParseTBSCertList(again); err != nil || fmt.Sprint(ours.CRL) != fmt.Sprint(l.CRL) {
			t.Errorf("%x is read as %+v, and made again as %+v", b, l.CRL, ours)
		}
	})
}

// FuzzResponseData does the same with answers.
func FuzzResponseData(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	i, _, ca := newIssuer(f, key)
	r, _, err := responder(f, i, ca, key, nil)
	if err != nil {
		f.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, revoked := range []*issuer.Revoked{nil, {At: now}, {At: now, Reason: 1}} {
		data, err := r.ResponseData(issuer.Answer{Hash: crypto.SHA256, Serial: "80", Revoked: revoked, ThisUpdate: now, NextUpdate: now})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := issuer.ParseResponseData(b)
		if err != nil {
			return
		}
		again, err := r.ResponseData(d.Answer)
		if err != nil {
			t.Fatalf("%x is read as %+v, which is no answer: %v", b, d.Answer, err)
		}
		if ours, err := issuer.ParseResponseData(again); err != nil || fmt.Sprintf("%+v", ours.ThisUpdate) != fmt.Sprintf("%+v", d.ThisUpdate) || ours.Serial != d.Serial || (ours.Revoked == nil) != (d.Revoked == nil) {
			t.Errorf("%x is read as %+v, and made again as %+v", b, d, ours)
		}
	})
}
