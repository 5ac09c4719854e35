package issuer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/audit"
)

// ErrStatus says that the octets are no list, or no answer about a certificate, that
// may be signed here.
var ErrStatus = errors.New("issuer: not a status that can be signed here")

// MaxCRL bounds a TBSCertList, in octets: about 200,000 entries.
const MaxCRL = 8 << 20

// Reasons for which a certificate can be revoked (RFC 5280, section 5.3.1). The
// others are of CAs and attribute authorities, or can be taken back, which a list
// that only grows cannot say.
const (
	Unspecified          = 0
	KeyCompromise        = 1
	AffiliationChanged   = 3
	Superseded           = 4
	CessationOfOperation = 5
	PrivilegeWithdrawn   = 9
)

// A Revoked is one entry of a list, or what an answer says of one certificate.
type Revoked struct {
	Serial string // lowercase hex
	Reason int
	At     time.Time // whole seconds
}

// A CRL is what a list of revoked certificates says (RFC 5280, section 5.1).
type CRL struct {
	Number     uint64
	ThisUpdate time.Time // whole seconds
	NextUpdate time.Time
	Entries    []Revoked // each serial once
}

// A StatusSigner holds the keys that answer for what was issued. It gets whole
// octets, never a digest, parses them as exactly the one type, and may refuse; the
// signature is as it stands in the structure. It must not change or keep the octets.
type StatusSigner interface {
	// SignCRL signs a TBSCertList by the number of the record that committed to it.
	SignCRL(ctx context.Context, issuer string, tbs []byte, intent uint64) (signature []byte, err error)
	// SignOCSP signs a ResponseData with the OCSP key of an issuer.
	SignOCSP(ctx context.Context, issuer string, data []byte) (signature []byte, err error)
}

// TBSCertList returns the octets of a list to be signed, and what a record commits
// to. The error is [ErrStatus] for a list that is too long or says what it must not.
func (i *Issuer) TBSCertList(c CRL) ([]byte, audit.CRLIntent, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 512+64*len(c.Entries)))
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1) // v2
		b.AddBytes(i.algID)
		b.AddBytes(i.ca.RawSubject)
		addTime(b, c.ThisUpdate.UTC())
		addTime(b, c.NextUpdate.UTC())
		if len(c.Entries) > 0 { // an empty list is left out (section 5.1.2.6)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				for _, e := range c.Entries {
					addEntry(b, e)
				}
			})
		}
		b.AddASN1(cbasn1.Tag(0).Constructed().ContextSpecific(), sequence(func(b *cryptobyte.Builder) {
			extension(b, false, ce(35), sequence(func(b *cryptobyte.Builder) {
				b.AddASN1(classContext, func(b *cryptobyte.Builder) { b.AddBytes(i.ca.SubjectKeyId) })
			}))
			extension(b, false, ce(20), func(b *cryptobyte.Builder) { b.AddASN1Uint64(c.Number) })
		}))
	})
	tbs, err := b.Bytes()
	if err != nil {
		return nil, audit.CRLIntent{}, fmt.Errorf("%w: %w", ErrStatus, err)
	}
	sum := sha256.Sum256(tbs)
	intent := audit.CRLIntent{Issuer: i.name, Number: c.Number, Digest: hex.EncodeToString(sum[:])}
	_, err = ParseTBSCertList(tbs)
	return tbs, intent, err
}

// addEntry writes an entry; a reason that says nothing is left out (section 5.3.1).
func addEntry(b *cryptobyte.Builder, e Revoked) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		addSerial(b, e.Serial)
		addTime(b, e.At.UTC())
		if e.Reason == Unspecified {
			return
		}
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			extension(b, false, ce(21), func(b *cryptobyte.Builder) { b.AddASN1Enum(int64(e.Reason)) })
		})
	})
}

// addSerial writes a positive INTEGER from its hex.
func addSerial(b *cryptobyte.Builder, text string) {
	serial, err := hex.DecodeString(text)
	serial = bytes.TrimLeft(serial, "\x00")
	if err != nil || len(serial) == 0 || len(serial) > 20 {
		b.SetError(fmt.Errorf("%w: %q is no serial number", ErrStatus, text))
		return
	}
	b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) {
		if serial[0] >= 0x80 {
			b.AddUint8(0)
		}
		b.AddBytes(serial)
	})
}

// SignCRL has a list signed, by the number of the record of its intent, and returns
// its DER. A nil error means that the signature has the form of one by the CA's key;
// the signer has verified it.
func (i *Issuer) SignCRL(ctx context.Context, signer StatusSigner, tbs []byte, intent uint64) ([]byte, error) {
	signature, err := signer.SignCRL(ctx, i.name, bytes.Clone(tbs), intent)
	if err != nil {
		return nil, fmt.Errorf("issuer: signing a CRL: %w", err)
	}
	if !i.formed(signature) {
		return nil, fmt.Errorf("%w: a CRL", ErrSignature)
	}
	return assemble(tbs, i.algID, signature)
}

// A TBSCertList is a list as its octets have it.
type TBSCertList struct {
	CRL
	SignatureAlgorithm []byte // DER
	Issuer             []byte // DER
	AuthorityKeyID     []byte
}

// ParseTBSCertList reads exactly the one type: DER, version 2, with a nextUpdate,
// entries that have a reason or nothing, and of extensions authorityKeyIdentifier and
// CRLNumber in this order and no other. The error is [ErrStatus].
func ParseTBSCertList(der []byte) (*TBSCertList, error) {
	if len(der) > MaxCRL {
		return nil, fmt.Errorf("%w: a list of %d octets", ErrStatus, len(der))
	}
	in, l := cryptobyte.String(der), &TBSCertList{}
	var body cryptobyte.String
	var version int
	if !in.ReadASN1(&body, cbasn1.SEQUENCE) || !in.Empty() || !body.ReadASN1Integer(&version) || version != 1 {
		return nil, fmt.Errorf("%w: no TBSCertList of version 2", ErrStatus)
	}
	if !readElement(&body, &l.SignatureAlgorithm) || !readElement(&body, &l.Issuer) || !readTime(&body, &l.ThisUpdate) || !readTime(&body, &l.NextUpdate) {
		return nil, fmt.Errorf("%w: the head of the list", ErrStatus)
	}
	if body.PeekASN1Tag(cbasn1.SEQUENCE) {
		var list cryptobyte.String
		if !body.ReadASN1(&list, cbasn1.SEQUENCE) || list.Empty() {
			return nil, fmt.Errorf("%w: an empty list of entries", ErrStatus)
		}
		for !list.Empty() {
			e, ok := readEntry(&list)
			if !ok {
				return nil, fmt.Errorf("%w: entry %d", ErrStatus, len(l.Entries)+1)
			}
			l.Entries = append(l.Entries, e)
		}
	}
	var outer, list cryptobyte.String
	if !body.ReadASN1(&outer, cbasn1.Tag(0).Constructed().ContextSpecific()) || !body.Empty() || !outer.ReadASN1(&list, cbasn1.SEQUENCE) || !outer.Empty() || !l.readExtensions(&list) {
		return nil, fmt.Errorf("%w: the extensions of the list", ErrStatus)
	}
	return l, nil
}

func (l *TBSCertList) readExtensions(in *cryptobyte.String) bool {
	var aki, number, body, id cryptobyte.String
	ok := readExtension(in, ce(35), &aki) && readExtension(in, ce(20), &number) && in.Empty() &&
		aki.ReadASN1(&body, cbasn1.SEQUENCE) && aki.Empty() && body.ReadASN1(&id, classContext) && body.Empty() &&
		number.ReadASN1Integer(&l.Number) && number.Empty()
	l.AuthorityKeyID = id
	return ok
}

// readExtension reads one Extension that is not critical, and its value.
func readExtension(in *cryptobyte.String, want asn1.ObjectIdentifier, value *cryptobyte.String) bool {
	var one cryptobyte.String
	var id asn1.ObjectIdentifier
	return in.ReadASN1(&one, cbasn1.SEQUENCE) && one.ReadASN1ObjectIdentifier(&id) && id.Equal(want) &&
		one.ReadASN1(value, cbasn1.OCTET_STRING) && one.Empty()
}

func readEntry(in *cryptobyte.String) (e Revoked, ok bool) {
	var one cryptobyte.String
	if !in.ReadASN1(&one, cbasn1.SEQUENCE) {
		return e, false
	}
	if e.Serial, ok = readSerial(&one); !ok || !readTime(&one, &e.At) {
		return e, false
	}
	if one.Empty() {
		return e, true
	}
	var list, value cryptobyte.String
	ok = one.ReadASN1(&list, cbasn1.SEQUENCE) && one.Empty() && readExtension(&list, ce(21), &value) && list.Empty() &&
		value.ReadASN1Enum(&e.Reason) && value.Empty() && e.Reason != Unspecified && Reason(e.Reason) != ""
	return e, ok
}

// readSerial reads a positive INTEGER in its shortest form, of at most 20 octets.
func readSerial(in *cryptobyte.String) (string, bool) {
	var s cryptobyte.String
	if !in.ReadASN1(&s, cbasn1.INTEGER) || len(s) == 0 || s[0] >= 0x80 || len(s) > 1 && s[0] == 0 && s[1] < 0x80 {
		return "", false
	}
	digits := bytes.TrimLeft(s, "\x00")
	return hex.EncodeToString(digits), len(digits) > 0 && len(digits) <= 20
}

func readElement(in *cryptobyte.String, out *[]byte) bool {
	var s cryptobyte.String
	ok := in.ReadASN1Element(&s, cbasn1.SEQUENCE)
	*out = s
	return ok
}

// readTime reads a Time in the forms of RFC 5280, section 5.1.2.4.
func readTime(in *cryptobyte.String, out *time.Time) bool {
	if !in.PeekASN1Tag(cbasn1.UTCTime) {
		return readGeneralized(in, out) && out.Year() >= 2050
	}
	var raw cryptobyte.String
	peek := *in
	return peek.ReadASN1(&raw, cbasn1.UTCTime) && len(raw) == len("060102150405Z") && in.ReadASN1UTCTime(out)
}

// readGeneralized reads whole seconds of UTC.
func readGeneralized(in *cryptobyte.String, out *time.Time) bool {
	var raw cryptobyte.String
	peek := *in
	return peek.ReadASN1(&raw, cbasn1.GeneralizedTime) && len(raw) == len("20060102150405Z") && in.ReadASN1GeneralizedTime(out)
}

// Reason returns the name of a reason for which a certificate can be revoked, or "".
func Reason(code int) string {
	for name, n := range reasons {
		if n == code {
			return name
		}
	}
	return ""
}

// ReasonOf returns the number of a reason, by its name in RFC 5280; false for those
// that a device's certificate cannot be revoked for here.
func ReasonOf(name string) (int, bool) {
	n, ok := reasons[name]
	return n, ok
}

var reasons = map[string]int{
	"unspecified": Unspecified, "keyCompromise": KeyCompromise, "affiliationChanged": AffiliationChanged,
	"superseded": Superseded, "cessationOfOperation": CessationOfOperation, "privilegeWithdrawn": PrivilegeWithdrawn,
}

// CheckCRL reports whether tbs may be signed for the intent, which the caller read
// from the log itself: they are the octets that it commits to, exactly a list, of
// this CA, made at about now, and not for longer than the limits. The error is
// [ErrMismatch] or [ErrStatus].
func (l Limits) CheckCRL(tbs []byte, in audit.CRLIntent, now time.Time) error {
	if sum := sha256.Sum256(tbs); hex.EncodeToString(sum[:]) != in.Digest {
		return ErrMismatch
	}
	c, err := ParseTBSCertList(tbs)
	if err != nil {
		return err
	}
	if l.algorithm == nil {
		if l, err = l.Fixed(); err != nil {
			return err
		}
	}
	switch {
	case c.Number != in.Number:
		return fmt.Errorf("%w: its number is %d", ErrMismatch, c.Number)
	case !bytes.Equal(c.Issuer, l.Issuer), !bytes.Equal(c.AuthorityKeyID, l.SubjectKeyID), !bytes.Equal(c.SignatureAlgorithm, l.algorithm):
		return fmt.Errorf("%w: a list of another CA", ErrStatus)
	}
	return l.checkTimes(c.ThisUpdate, c.NextUpdate, now)
}

// slack is how far a status may be dated from now: its octets are made, recorded and
// then signed, within seconds.
const slack = 2 * time.Minute

func (l Limits) checkTimes(this, next, now time.Time) error {
	if d := now.Sub(this); d > slack || d < -slack {
		return fmt.Errorf("%w: it is dated %s ago", ErrStatus, d.Round(time.Second))
	}
	if !next.After(this) || next.Sub(this) > l.MaxStatus {
		return fmt.Errorf("%w: it is good for %s", ErrStatus, next.Sub(this))
	}
	return nil
}
