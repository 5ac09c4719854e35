package pipeline_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// demand is a CSR that asks for any subject and any extensions.
func demand(t *testing.T, key *rsa.PrivateKey, subject pkix.RDNSequence, challenge string, extensions ...pkix.Extension) []byte {
	t.Helper()
	context0 := cbasn1.Tag(0).Constructed().ContextSpecific()
	attribute := func(b *cryptobyte.Builder, oid asn1.ObjectIdentifier, value func(*cryptobyte.Builder)) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oid)
			b.AddASN1(cbasn1.SET, value)
		})
	}
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddBytes(must(asn1.Marshal(subject))(t))
		b.AddBytes(must(x509.MarshalPKIXPublicKey(&key.PublicKey))(t))
		b.AddASN1(context0, func(b *cryptobyte.Builder) {
			attribute(b, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}, func(b *cryptobyte.Builder) {
				b.AddASN1(cbasn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(challenge)) })
			})
			if len(extensions) > 0 {
				attribute(b, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}, func(b *cryptobyte.Builder) { b.AddBytes(must(asn1.Marshal(extensions))(t)) })
			}
		})
	})
	info := b.BytesOrPanic()
	b = cryptobyte.Builder{}
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(info)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11})
			b.AddASN1NULL()
		})
		b.AddASN1BitString(nil)
	})
	return resigned(t, b.BytesOrPanic(), key)
}

func extension(oid asn1.ObjectIdentifier, value ...byte) pkix.Extension {
	return pkix.Extension{Id: oid, Value: value}
}

// Extensions of a certificate (RFC 5280, section 4.2).
var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidAltName          = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidNameConstraints  = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidExtendedUsage    = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidMicrosoftSID     = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 25, 2}
)

// issuedSince fails if the log has an intent since then.
func issuedSince(t *testing.T, from uint64) {
	t.Helper()
	for _, r := range records(t, from) {
		if r.Event == "enroll" && (r.Outcome == "intent" || r.Outcome == "issued") {
			t.Errorf("something was issued: %+v", r)
		}
	}
}

// TestAttack01TheChallengesHolderAsksForOtherNames has somebody with a good
// challenge ask for what it is not for.
//
func TestAttack01TheChallengesHolderAsksForOtherNames(t *testing.T) {
	d := at(t, "many")
	const mine = "holder.demo.example"
	rdns := func(values ...pkix.AttributeTypeAndValue) (all pkix.RDNSequence) {
		for _, v := range values {
			all = append(all, []pkix.AttributeTypeAndValue{v})
		}
		return all
	}
	cn := func(s string) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: s}
	}
	administrator := must(asn1.Marshal([]asn1.RawValue{{Class: 2, Tag: 2, Bytes: []byte("admin.demo.example")}}))(t)
	for what, csr := range map[string]func(challenge string) []byte{
		"another name":      func(c string) []byte { return demand(t, keys[0], rdns(cn("admin.demo.example")), c) },
		"another beside it": func(c string) []byte { return demand(t, keys[0], rdns(cn(mine), cn("admin.demo.example")), c) },
		"it beside another": func(c string) []byte { return demand(t, keys[0], rdns(cn("admin.demo.example"), cn(mine)), c) },
		"another dNSName": func(c string) []byte {
			return demand(t, keys[0], rdns(cn(mine)), c, extension(oidAltName, administrator...))
		},
		"no name": func(c string) []byte { return demand(t, keys[0], nil, c) },
	} {
		t.Run(what, func(t *testing.T) {
			c := challenge(t, "many", mine)
			from := logSize(t)
			_, err := send(t, d, selfSigned(t, keys[0], csr(c.Challenge)))
			refused(t, err).is(t, badRequest, notValid).reasons(t, "challenge").challengeWhy(t, "other-names")
			issuedSince(t, from)
			must(enroll(t, d, keys[0], mine, c.Challenge))(t)
		})
	}
	if n := listed(t, "admin.demo.example"); n != 0 {
		t.Errorf("%d certificates for the administrator", n)
	}
}

// TestAttack02UpdateReqSkipsTheChallenge asks by types that some servers serve, or
// do not know, for a certificate that nothing authorizes: as a stranger, and with a
// certificate of another name.
// Covers: A-2, S-027
func TestAttack02UpdateReqSkipsTheChallenge(t *testing.T) {
	d := at(t, "many")
	own, _ := enrolled(t, d, "many", "updater.demo.example", keys[1])
	const cn = "update.demo.example"
	stranger := selfSigned(t, keys[0], ask(t, keys[0], cn, ""))
	from := logSize(t)
	for _, kind := range []int{18, 0, 1, 2, 3, 4, 5, 15, 16, 23, 24, 127, 128, 255, 256, 274, 1 << 31, -18} {
		for _, m := range []client.Message{stranger, {Signer: own.Raw, SignerKey: keys[1], CSR: ask(t, keys[2], cn, "")}} {
			m.Type = kind
			_, err := send(t, d, m)
			refused(t, err).is(t, badRequest, "this type of message is not supported")
		}
	}
	issuedSince(t, from)
	if n := listed(t, cn); n != 0 {
		t.Errorf("%d certificates", n)
	}
}

// TestAttack04OddFieldsOfCertificates gives extensions that cannot be read, or
// that are empty, to the signer's certificate and to the CSR. None of them counts,
// none gets into a certificate, and nobody falls over one: the journal is searched
// for a panic when the tests end.
// Covers: A-4, S-101
func TestAttack04OddFieldsOfCertificates(t *testing.T) {
	d := at(t, "many")
	const cn = "odd.demo.example"
	for what, odd := range map[string]pkix.Extension{
		"no extended usage at all":   extension(oidExtendedUsage, 0x30, 0),
		"an empty name":              extension(asn1.ObjectIdentifier{2, 5, 29, 18}, 0x30, 0),
		"a usage that is noise":      extension(oidKeyUsage, 0xff, 0xff),
		"a usage of no octets":       extension(oidKeyUsage),
		"constraints that are noise": extension(oidBasicConstraints, 0x30, 0x84, 0xff, 0xff, 0xff, 0xff),
		"names that are forbidden":   extension(oidNameConstraints, 0x30, 0x02, 0xa0, 0),
		"a policy without an id":     extension(asn1.ObjectIdentifier{2, 5, 29, 32}, 0x30, 0x02, 0x30, 0),
		"a TPM's key without a name": extension(asn1.ObjectIdentifier{2, 23, 133, 8, 3}, 0x30, 0),
		"an authority without a key": extension(asn1.ObjectIdentifier{2, 5, 29, 35}, 0x30, 0x02, 0x80, 0),
		"distribution points of nil": extension(asn1.ObjectIdentifier{2, 5, 29, 31}, 0x05, 0),
		"a poison that is critical":  {Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 3}, Critical: true, Value: []byte{5, 0}},
	} {
		t.Run(what, func(t *testing.T) {
			template := &x509.Certificate{SerialNumber: asSerial(what), Subject: name("device"), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), ExtraExtensions: []pkix.Extension{odd}}
			signer := must(x509.CreateCertificate(rand.Reader, template, template, &keys[0].PublicKey, keys[0]))(t)
			csr := demand(t, keys[0], name(cn).ToRDNSequence(), challenge(t, "many", cn).Challenge, odd)
			cert, err := send(t, d, client.Message{Type: scep.PKCSReq, Signer: signer, SignerKey: keys[0], CSR: csr})
			if odd.Id.Equal(oidBasicConstraints) {
				refused(t, err).is(t, badRequest, "a device may not ask to be a CA")
				csr = ask(t, keys[0], cn, challenge(t, "many", cn).Challenge)
				cert, err = send(t, d, client.Message{Type: scep.PKCSReq, Signer: signer, SignerKey: keys[0], CSR: csr})
			}
			asTheProfileSays(t, must(cert, err)(t))
		})
	}
}

// asTheProfileSays wants a certificate of the profile many: nothing of it is the
// CSR's but name and key.
func asTheProfileSays(t *testing.T, c *x509.Certificate) {
	t.Helper()
	var extensions []string
	for _, e := range c.Extensions {
		extensions = append(extensions, e.Id.String())
	}
	slices.Sort(extensions)
	// authority and subject key, constraints, usage and extended usage
	if want := []string{"2.5.29.14", "2.5.29.15", "2.5.29.19", "2.5.29.35", "2.5.29.37"}; !slices.Equal(extensions, want) {
		t.Errorf("extensions %v, want %v", extensions, want)
	}
	if c.IsCA || !c.BasicConstraintsValid || c.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(c.UnknownExtKeyUsage) > 0 {
		t.Errorf("CA %v, usage %b, extended %v %v", c.IsCA, c.KeyUsage, c.ExtKeyUsage, c.UnknownExtKeyUsage)
	}
	if len(c.DNSNames)+len(c.URIs)+len(c.EmailAddresses)+len(c.IPAddresses) > 0 || strings.Count(c.Subject.String(), "CN=") != 1 {
		t.Errorf("names %v %v %v", c.Subject, c.DNSNames, c.URIs)
	}
}

// TestAttack10TheCSRsExtensionsBecomeTheCertificates asks for the powers of a CA,
// of a signer of code, and of anything.
//
func TestAttack10TheCSRsExtensionsBecomeTheCertificates(t *testing.T) {
	d := at(t, "many")
	const cn = "power.demo.example"
	usage := func(oids ...asn1.ObjectIdentifier) pkix.Extension {
		return extension(oidExtendedUsage, must(asn1.Marshal(oids))(t)...)
	}
	for what, extensions := range map[string][]pkix.Extension{
		"a CA, by usage alone":   {extension(oidKeyUsage, 3, 2, 2, 4)},
		"any purpose":            {usage(asn1.ObjectIdentifier{2, 5, 29, 37, 0})},
		"code":                   {usage(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 3})},
		"OCSP and time stamps":   {usage(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 9}, asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 8})},
		"smart card logon":       {usage(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 2})},
		"enrollment for others":  {usage(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2, 1})},
		"no purpose, so any":     {extension(oidExtendedUsage, 0x30, 0)},
		"a template of its own":  {extension(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 20, 2}, append([]byte{0x1e, 10}, []byte("\x00S\x00u\x00b\x00C\x00A")...)...)},
		"status by itself alone": {extension(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24}, 0x30, 3, 2, 1, 5), extension(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}, 5, 0)},
	} {
		t.Run(what, func(t *testing.T) {
			csr := demand(t, keys[0], name(cn).ToRDNSequence(), challenge(t, "many", cn).Challenge, extensions...)
			asTheProfileSays(t, must(send(t, d, selfSigned(t, keys[0], csr)))(t))
		})
	}
	from := logSize(t)
	ca := pkix.Extension{Id: oidBasicConstraints, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}
	csr := demand(t, keys[0], name(cn).ToRDNSequence(), challenge(t, "many", cn).Challenge, ca, extension(oidKeyUsage, 3, 2, 1, 6))
	_, err := send(t, d, selfSigned(t, keys[0], csr))
	refused(t, err).is(t, badRequest, "a device may not ask to be a CA")
	issuedSince(t, from)
}

// TestAttack11SecurityIdentifierIsSpoofed asks to be another account of a Windows
// domain, by the extension and by Intune's URI.
//
func TestAttack11SecurityIdentifierIsSpoofed(t *testing.T) {
	d := at(t, "many")
	const cn, sid = "sid.demo.example", "S-1-5-21-1-2-3-500"
	other := must(asn1.Marshal(struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}{asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 25, 2, 1}, asn1.RawValue{Class: 2, IsCompound: true, Bytes: must(asn1.Marshal([]byte(sid)))(t)}}))(t)
	other[0] = 0xa0
	csr := demand(t, keys[0], name(cn).ToRDNSequence(), challenge(t, "many", cn).Challenge,
		extension(oidMicrosoftSID, must(asn1.Marshal([]asn1.RawValue{{FullBytes: other}}))(t)...))
	asTheProfileSays(t, must(send(t, d, selfSigned(t, keys[0], csr)))(t))
	for _, general := range []asn1.RawValue{{Class: 2, Tag: 6, Bytes: []byte("tag:microsoft.com,2022-09-14:sid:" + sid)}, {FullBytes: other}} {
		c := challenge(t, "many", cn)
		csr = demand(t, keys[0], name(cn).ToRDNSequence(), c.Challenge, extension(oidAltName, must(asn1.Marshal([]asn1.RawValue{general}))(t)...))
		_, err := send(t, d, selfSigned(t, keys[0], csr))
		refused(t, err).is(t, badRequest, "")
		must(enroll(t, d, keys[0], cn, c.Challenge))(t)
	}
}

// TestAttack13ANewEnrollmentRevokesAnothers enrolls a name that somebody else has.
//
func TestAttack13ANewEnrollmentRevokesAnothers(t *testing.T) {
	d := at(t, "many")
	const cn = "shared-name.demo.example"
	first, _ := enrolled(t, d, "many", cn, keys[0])
	before := show(t, first)
	from := logSize(t)
	for _, key := range keys[1:4] {
		enrolled(t, d, "many", cn, key)
	}
	if after := show(t, first); after != before {
		t.Errorf("it was %+v and is %+v", before, after)
	}
	for _, r := range records(t, from) {
		if strings.Contains(r.Event+r.Outcome, "revo") {
			t.Errorf("the log says %+v", r)
		}
	}
	must(renew(t, d, scep.RenewalReq, first, keys[0], ask(t, keys[0], cn, "")))(t)
}

// TestAttack15RenewalsWithoutEnd renews until it is refused, and tries to renew
// another's certificate.
//
func TestAttack15RenewalsWithoutEnd(t *testing.T) {
	d := at(t, "many")
	const cn = "forever.demo.example"
	cert, _ := enrolled(t, d, "many", cn, keys[0])
	victim, _ := enrolled(t, d, "many", "victim.demo.example", keys[1])
	n := 0
	for ; n < 10; n++ {
		next, err := renew(t, d, scep.RenewalReq, cert, keys[0], ask(t, keys[0], cn, ""))
		if err != nil {
			refused(t, err).is(t, badRequest, "enroll again").reasons(t, "renewal.max_count")
			break
		}
		cert = next
	}
	if n != 3 {
		t.Errorf("%d renewals, the profile has 3", n)
	}
	from := logSize(t)
	_, err := renew(t, d, scep.RenewalReq, cert, keys[0], ask(t, keys[2], "victim.demo.example", ""))
	refused(t, err).is(t, badMessageCheck, notProven)
	// With the victim's certificate, and without its key.
	request := must(d.Request(client.Message{Type: scep.RenewalReq, Signer: victim.Raw, SignerKey: keys[1], CSR: ask(t, keys[2], "victim.demo.example", "")}))(t)
	request.DER[len(request.DER)-1] ^= 1
	_, err = d.Do(t.Context(), request)
	refused(t, err).is(t, badMessageCheck, notProven)
	issuedSince(t, from)
}

// TestAttack19GuessesLockADeviceOut guesses at challenges for a device's name: the
// device gets its certificate all the same.
//
func TestAttack19GuessesLockADeviceOut(t *testing.T) {
	d := at(t, "many")
	const cn = "lockout.demo.example"
	c := challenge(t, "many", cn)
	for i := range 40 {
		guess := []byte(c.Challenge)
		for j := range 1 + i%len(guess) { // ever further from it
			guess[len(guess)-1-j] = "0123456789abcdefghjkmnpqrstvwxyz"[(i+j)%32]
		}
		if string(guess) == c.Challenge {
			continue
		}
		_, err := enroll(t, d, keys[i%4], cn, string(guess))
		refused(t, err).is(t, badRequest, notValid).challengeWhy(t, "unknown")
	}
	must(enroll(t, d, keys[5], cn, c.Challenge))(t)
}

// TestAttack06NobodyChecksTheRenewalsSigner: who names another's certificate, or one
// that was never issued, is told the same, octet for octet.
//
func TestAttack06NobodyChecksTheRenewalsSigner(t *testing.T) {
	d := at(t, "many")
	const cn = "inventory.demo.example"
	cert, _ := enrolled(t, d, "many", cn, keys[0])
	unknown := *cert
	unknown.SerialNumber = asSerial("never issued")
	csr := ask(t, keys[4], cn, "")
	var first string
	from := logSize(t)
	for what, signer := range map[string][]byte{
		"one that was issued": certificateFor(t, keys[3], asIssued(cert)), "one that was not": certificateFor(t, keys[3], asIssued(&unknown)),
	} {
		request := must(d.Request(client.Message{Type: scep.RenewalReq, Signer: signer, SignerKey: keys[3], CSR: csr}))(t)
		reply := must(d.Post(t.Context(), request.DER))(t)
		if got := looks(t, reply); first == "" {
			first = got
		} else if got != first {
			t.Errorf("%s looks like\n%s\nand not like\n%s", what, got, first)
		}
		_, err := client.Open(reply, request.Expect)
		refused(t, err).is(t, badMessageCheck, notProven)
	}
	// Nobody's, and another profile's.
	_, err := send(t, d, client.Message{Type: scep.RenewalReq, Signer: must(site.SelfSigned(keys[3], name(cn), time.Now(), time.Now().Add(time.Hour)))(t), SignerKey: keys[3], CSR: ask(t, keys[3], cn, "")})
	refused(t, err).is(t, badRequest, "a renewal is signed by a certificate of this CA")
	_, err = renew(t, at(t, "interop"), scep.RenewalReq, cert, keys[0], ask(t, keys[0], cn, ""))
	refused(t, err).is(t, badRequest, "another profile")
	issuedSince(t, from)
	must(renew(t, d, scep.RenewalReq, cert, keys[0], csr))(t)
}

// asIssued has the parts of a certificate that its signer names.
func asIssued(c *x509.Certificate) *x509.Certificate {
	return &x509.Certificate{SerialNumber: c.SerialNumber, RawSubject: c.RawSubject, RawIssuer: c.RawIssuer, NotBefore: c.NotBefore, NotAfter: c.NotAfter}
}

// isStatus wants an answer that is no message.
func isStatus(t *testing.T, what string, err error, codes ...int) {
	t.Helper()
	if e, ok := errors.AsType[*client.StatusError](err); !ok || !slices.Contains(codes, e.Code) {
		t.Errorf("%s: %v, want one of %v", what, err, codes)
	}
}
