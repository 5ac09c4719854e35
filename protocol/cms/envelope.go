package cms

import (
	"bytes"
	"crypto"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/asn1"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Envelope is an EnvelopedData (RFC 5652, section 6.1), parsed and still closed.
type Envelope struct {
	Recipients []Recipient // those of key transport, in order
	Passwords  []Password  // those by a password, in order; other kinds are left out
	Cipher     Cipher      // one that is supported
	IV         []byte
	Ciphertext []byte
}

// A Recipient is a KeyTransRecipientInfo. It names its certificate by issuer and
// serial number, or by key identifier: the other fields are nil.
type Recipient struct {
	RawIssuer    []byte // Name, DER with its tag
	RawSerial    []byte // the INTEGER's content octets
	SubjectKeyID []byte
	Algorithm    asn1.ObjectIdentifier // [OIDRSAEncryption] for PKCS #1 v1.5, the only one that [Envelop] writes
	EncryptedKey []byte
	// OAEPHash and OAEPMGF are the hashes of [OIDRSAESOAEP]: of the empty label and of
	// MGF1, each SHA-1 or SHA-256. Both are 0 for parameters that say something else.
	OAEPHash, OAEPMGF crypto.Hash
}

// Names reports whether the recipient is the holder of c.
func (r Recipient) Names(c *Certificate) bool {
	return c != nil && identifier{r.RawIssuer, r.RawSerial, r.SubjectKeyID}.names(c)
}

// An identifier is a SignerIdentifier or RecipientIdentifier (RFC 5652, sections
// 5.3 and 6.2.1).
type identifier struct{ issuer, serial, keyID []byte }

func (i identifier) names(c *Certificate) bool {
	if len(i.keyID) > 0 {
		return bytes.Equal(i.keyID, c.SubjectKeyID)
	}
	return len(i.serial) > 0 && bytes.Equal(i.issuer, c.RawIssuer) && bytes.Equal(i.serial, c.RawSerial)
}

func readIdentifier(s *cryptobyte.String) (id identifier, ok bool) {
	if s.PeekASN1Tag(tagPrimitive0) || s.PeekASN1Tag(tagExplicit0) {
		key, ok := readSegments(s)
		return identifier{keyID: key}, ok && len(key) > 0
	}
	var pair, issuer, serial cryptobyte.String
	ok = s.ReadASN1(&pair, cbasn1.SEQUENCE) && pair.ReadASN1Element(&issuer, cbasn1.SEQUENCE) &&
		pair.ReadASN1(&serial, cbasn1.INTEGER) && len(serial) > 0 && pair.Empty()
	return identifier{issuer: issuer, serial: serial}, ok
}

// readSegments reads a [0] IMPLICIT OCTET STRING. [DER] leaves one in segments as
// it is, because the tag alone does not say that it is a string; OpenSSL writes
// the content of a streamed envelope so. The copy is linear: the segments are
// joined into one buffer.
func readSegments(s *cryptobyte.String) ([]byte, bool) {
	var body cryptobyte.String
	if s.PeekASN1Tag(tagPrimitive0) {
		return body, s.ReadASN1(&body, tagPrimitive0)
	}
	if !s.ReadASN1(&body, tagExplicit0) {
		return nil, false
	}
	joined := make([]byte, 0, len(body))
	for !body.Empty() {
		var one cryptobyte.String
		if !body.ReadASN1(&one, cbasn1.OCTET_STRING) {
			return nil, false
		}
		joined = append(joined, one...)
	}
	return joined, true
}

// ParseEnvelope reads a ContentInfo of EnvelopedData whose content is id-data,
// as [DER] returns it. Single DES and unknown ciphers are [ErrAlgorithm]; the other
// errors are [ErrMalformed], [ErrTrailing] and [ErrTooMany]. The result keeps
// references to der. All that it looks at is what anybody can see,
// so it may fail in many ways.
func ParseEnvelope(der []byte) (*Envelope, error) {
	body, err := readContentInfo(der, oidEnvelopedData)
	if err != nil {
		return nil, err
	}
	var version int
	var recipients, content cryptobyte.String
	if !body.ReadASN1Integer(&version) || version < 0 || version > 4 || !body.SkipOptionalASN1(tagExplicit0) {
		return nil, malformed("version of EnvelopedData")
	}
	if !body.ReadASN1(&recipients, cbasn1.SET) || !body.ReadASN1(&content, cbasn1.SEQUENCE) || !body.SkipOptionalASN1(tagExplicit1) {
		return nil, malformed("EnvelopedData")
	}
	if !body.Empty() {
		return nil, trailing("EnvelopedData's fields")
	}
	e := &Envelope{}
	if err := e.readRecipients(recipients); err != nil {
		return nil, err
	}
	if err := e.readContent(content); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Envelope) readRecipients(list cryptobyte.String) error {
	for n := 0; !list.Empty(); n++ {
		if n == maxRecipients {
			return fmt.Errorf("%w: recipients", ErrTooMany)
		}
		var info, key cryptobyte.String
		var tag cbasn1.Tag
		if !list.ReadAnyASN1(&info, &tag) {
			return malformed("RecipientInfo")
		}
		if tag == tagPassword {
			if p, ok := readPassword(info); ok {
				e.Passwords = append(e.Passwords, p)
			}
			continue
		}
		if tag != cbasn1.SEQUENCE {
			continue // key agreement and the like (RFC 5652, section 6.2)
		}
		var version int
		if !info.ReadASN1Integer(&version) || version != 0 && version != 2 {
			return malformed("version of KeyTransRecipientInfo")
		}
		id, ok := readIdentifier(&info)
		if !ok {
			return malformed("recipient identifier")
		}
		oid, params, ok := readAlgorithm(&info)
		if !ok || oid.Equal(OIDRSAEncryption) && !noParams(params) || !info.ReadASN1(&key, cbasn1.OCTET_STRING) {
			return malformed("encrypted key")
		}
		if !info.Empty() {
			return trailing("KeyTransRecipientInfo's fields")
		}
		r := Recipient{RawIssuer: id.issuer, RawSerial: id.serial, SubjectKeyID: id.keyID, Algorithm: oid, EncryptedKey: key}
		if oid.Equal(OIDRSAESOAEP) {
			r.OAEPHash, r.OAEPMGF = readOAEP(params)
		}
		e.Recipients = append(e.Recipients, r)
	}
	return nil
}

// readContent reads an EncryptedContentInfo.
func (e *Envelope) readContent(s cryptobyte.String) error {
	var kind asn1.ObjectIdentifier
	if !s.ReadASN1ObjectIdentifier(&kind) || !kind.Equal(oidData) {
		return malformed("type of the encrypted content")
	}
	oid, params, ok := readAlgorithm(&s)
	if !ok {
		return malformed("content encryption algorithm")
	}
	c, err := cipherOf(oid)
	if err != nil {
		return err
	}
	var iv cryptobyte.String
	if !params.ReadASN1(&iv, cbasn1.OCTET_STRING) || !params.Empty() || len(iv) != c.size {
		return malformed("initialization vector")
	}
	text, ok := readSegments(&s)
	if !ok || len(text) == 0 || len(text)%c.size != 0 {
		return malformed("encrypted content")
	}
	if !s.Empty() {
		return trailing("encrypted content")
	}
	e.Cipher, e.IV, e.Ciphertext = c.cipher, iv, text
	return nil
}

// Open decrypts the content with the content key. It fails with [ErrOpen] alone.
// Given a key of the cipher's size it always decrypts all of the content, and
// looks at the padding (RFC 5652, section 6.3) in time that does not depend on
// what it finds. Success or failure still shows in the result, and whoever
// answers a stranger must hide it as well.
func (e *Envelope) Open(contentKey []byte) ([]byte, error) {
	c := e.Cipher.info()
	block, err := c.block(contentKey)
	if err != nil || len(e.IV) != c.size || len(e.Ciphertext) == 0 || len(e.Ciphertext)%c.size != 0 {
		return nil, ErrOpen
	}
	out := make([]byte, len(e.Ciphertext))
	cipher.NewCBCDecrypter(block, e.IV).CryptBlocks(out, e.Ciphertext)
	n, good := unpad(out, c.size)
	if good != 1 {
		return nil, ErrOpen
	}
	return out[:n:n], nil
}

// unpad returns the length of the content in b, whole blocks, without its
// padding, and 1 if the padding is right, else 0, looking at the same octets in
// any case.
func unpad(b []byte, size int) (n, good int) {
	last := b[len(b)-size:]
	pad := int(last[size-1])
	good = subtle.ConstantTimeLessOrEq(1, pad) & subtle.ConstantTimeLessOrEq(pad, size)
	for i := 1; i <= size; i++ {
		inside := subtle.ConstantTimeLessOrEq(i, pad)
		equal := subtle.ConstantTimeByteEq(last[size-i], last[size-1])
		good &= subtle.ConstantTimeSelect(inside, equal, 1)
	}
	return len(b) - subtle.ConstantTimeSelect(good, pad, 0), good
}

// Envelop encrypts content to the RSA key of one certificate, named by issuer
// and serial number, with PKCS #1 v1.5 key transport (RFC 3370, section 4.2.1),
// which is what RFC 8894 clients read. It returns a ContentInfo, DER. rand gives
// the content key and the initialization vector. The error is [ErrAlgorithm] for a
// key that is not RSA or has no room for the content key, and for a cipher that is
// not supported; else rand's.
func Envelop(rand io.Reader, content []byte, to *Certificate, c Cipher) ([]byte, error) {
	pub, ok := to.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%w: key transport to %T", ErrAlgorithm, to.PublicKey)
	}
	key, iv, text, err := encrypt(rand, content, c)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	//lint:ignore SA1019 it is the key transport that all SCEP clients have
	wrapped, err := rsa.EncryptPKCS1v15(rand, pub, key) //nolint:staticcheck // it is the key transport that all SCEP clients have
	if err != nil {
		return nil, fmt.Errorf("%w: encrypting the content key: %w", ErrAlgorithm, err)
	}
	return marshalEnvelope(0, c.info(), iv, text, func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Int64(0)
			addIssuerAndSerial(b, to)
			addAlgorithm(b, OIDRSAEncryption, true)
			b.AddASN1OctetString(wrapped)
		})
	})
}

// encrypt encrypts content with a new key.
func encrypt(rand io.Reader, content []byte, c Cipher) (key, iv, text []byte, err error) {
	info := c.info()
	if info.key == 0 {
		return nil, nil, nil, fmt.Errorf("%w: %s", ErrAlgorithm, c)
	}
	secret := make([]byte, info.key+info.size)
	if _, err := io.ReadFull(rand, secret); err != nil {
		return nil, nil, nil, fmt.Errorf("cms: random octets: %w", err)
	}
	key, iv = secret[:info.key:info.key], secret[info.key:]
	block, err := info.block(key)
	if err != nil {
		return nil, nil, nil, err
	}
	pad := info.size - len(content)%info.size
	text = append(bytes.Clone(content), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(text, text)
	return key, iv, text, nil
}

// marshalEnvelope writes an EnvelopedData of a version with one recipient.
func marshalEnvelope(version int64, c cipherInfo, iv, text []byte, recipient cryptobyte.BuilderContinuation) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, len(text)+1024))
	addContentInfo(b, oidEnvelopedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(version)
		b.AddASN1(cbasn1.SET, recipient)
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidData)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(c.oid)
				b.AddASN1OctetString(iv)
			})
			b.AddASN1(tagPrimitive0, func(b *cryptobyte.Builder) { b.AddBytes(text) })
		})
	})
	return b.Bytes()
}

// addContentInfo writes a ContentInfo around the SEQUENCE that body fills.
func addContentInfo(b *cryptobyte.Builder, kind asn1.ObjectIdentifier, body cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(kind)
		b.AddASN1(tagExplicit0, func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, body) })
	})
}
