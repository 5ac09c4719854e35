package probe

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"   //nolint:gosec // a server has to refuse it
	_ "crypto/md5" //nolint:gosec // a server has to refuse it
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// Messages are made here, by hand: package cms writes nothing that is wrong.

var (
	oidData          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidContentType   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidDigest        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
)

var errNoRSA = errors.New("scep probe: nobody has an RSA key to encipher to")

// digests are the names of those that messages are made with.
var digests = [...]struct {
	hash crypto.Hash
	oid  asn1.ObjectIdentifier
}{
	{crypto.SHA256, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}}, {crypto.SHA512, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}},
	{crypto.SHA1, asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}}, {crypto.MD5, asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 5}},
}

// An identity signs messages: a key of a moment, and a certificate that it signed.
type identity struct {
	key  *rsa.PrivateKey
	cert *cms.Certificate
}

func newIdentity(key *rsa.PrivateKey) (*identity, error) {
	if key == nil {
		var err error
		if key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, fmt.Errorf("scep probe: making a key: %w", err)
		}
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "SCEP probe"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("scep probe: making a certificate: %w", err)
	}
	cert, err := cms.ParseCertificate(der)
	return &identity{key, cert}, err
}

// A message is one stimulus. The zero value of a field is what is usual.
type message struct {
	kind        int    // 0: PKCSReq
	transaction []byte // DER of a string; nil: one of its own
	hash        crypto.Hash
	cipher      cms.Cipher
	content     []byte              // nil: nothing that is a request
	to          *cms.Certificate    // nil: the server
	badPadding  bool                // of RSA
	shortKey    bool                // a content key of five octets
	badBlock    bool                // CBC padding
	tamper      func([]byte) []byte // of the whole
	nonce       []byte
}

// noRequest is what envelopes hold instead of a certificate request.
const noRequest = "this is no request, and asks for nothing"

// text is the DER of a string of less than 128 octets.
func text(tag cbasn1.Tag, s string) []byte { return append([]byte{byte(tag), byte(len(s))}, s...) }

// build fills in what is usual, and makes the message.
func (p *prober) build(m *message) ([]byte, error) {
	random := make([]byte, 32)
	if _, err := rand.Read(random); err != nil {
		return nil, err
	}
	m.nonce = random[:16]
	if m.kind == 0 {
		m.kind = scep.PKCSReq
	}
	if m.transaction == nil {
		m.transaction = text(cbasn1.PrintableString, fmt.Sprintf("%x", random[16:]))
	}
	if m.hash == 0 {
		m.hash = crypto.SHA256
	}
	if m.cipher == 0 {
		m.cipher = cms.AES128CBC
	}
	if m.content == nil {
		m.content = []byte(noRequest)
	}
	if m.to == nil {
		c := p.recipient()
		if c == nil {
			return nil, errNoRSA
		}
		var err error
		if m.to, err = cms.ParseCertificate(c.Raw); err != nil {
			return nil, err
		}
	}
	envelope, err := m.envelope()
	if err != nil {
		return nil, err
	}
	der, err := m.sign(p.self, envelope)
	if err == nil && m.tamper != nil {
		der = m.tamper(der)
	}
	return der, err
}

// block returns the cipher's block and the size of its key.
func (m *message) block() (size int, newBlock func([]byte) (cipher.Block, error)) {
	switch m.cipher {
	case cms.DESCBC:
		return 8, des.NewCipher
	case cms.DES3CBC:
		return 24, des.NewTripleDESCipher
	default:
		return m.cipher.KeySize(), aes.NewCipher
	}
}

// envelope makes an EnvelopedData (RFC 5652, section 6.1).
func (m *message) envelope() ([]byte, error) {
	size, newBlock := m.block()
	key := make([]byte, size)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	block, err := newBlock(key)
	if err != nil {
		return nil, err
	}
	iv := make([]byte, block.BlockSize())
	if _, err := rand.Read(iv); err != nil {
		return nil, err
	}
	pad := len(iv) - len(m.content)%len(iv)
	sealed := append(bytes.Clone(m.content), bytes.Repeat([]byte{byte(pad)}, pad)...)
	if m.badBlock {
		sealed[len(sealed)-1] = 0
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(sealed, sealed) //nolint:gosec // the IV was just made
	if m.shortKey {
		key = key[:5]
	}
	wrapped, err := m.wrap(key)
	if err != nil {
		return nil, err
	}
	var b cryptobyte.Builder
	addInfo(&b, oidEnvelopedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(0)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(0)
				addName(b, m.to)
				addAlgorithm(b, cms.OIDRSAEncryption, true)
				b.AddASN1OctetString(wrapped)
			})
		})
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidData)
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1ObjectIdentifier(m.cipher.OID())
				b.AddASN1OctetString(iv)
			})
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes(sealed) })
		})
	})
	return b.Bytes()
}

// wrap enciphers the content key, or something that has no padding.
func (m *message) wrap(key []byte) ([]byte, error) {
	pub, ok := m.to.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, errNoRSA
	}
	if m.badPadding {
		block := make([]byte, pub.Size())
		if _, err := rand.Read(block); err != nil {
			return nil, err
		}
		block[0], block[1] = 0, 5 // 0, 2 is right
		out := make([]byte, pub.Size())
		return new(big.Int).Exp(new(big.Int).SetBytes(block), big.NewInt(int64(pub.E)), pub.N).FillBytes(out), nil
	}
	//lint:ignore SA1019 RFC 8894 has no other key transport
	return rsa.EncryptPKCS1v15(rand.Reader, pub, key) //nolint:staticcheck // as above
}

// sign makes a SignedData (RFC 5652, section 5.1).
func (m *message) sign(as *identity, content []byte) ([]byte, error) {
	var name asn1.ObjectIdentifier
	for _, d := range digests {
		if d.hash == m.hash {
			name = d.oid
		}
	}
	sum := func(b []byte) []byte { h := m.hash.New(); h.Write(b); return h.Sum(nil) }
	var all [][]byte
	for _, a := range []struct {
		oid   asn1.ObjectIdentifier
		value cryptobyte.BuilderContinuation
	}{
		{oidContentType, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) }},
		{oidDigest, func(b *cryptobyte.Builder) { b.AddASN1OctetString(sum(content)) }},
		{scep.OIDMessageType, func(b *cryptobyte.Builder) { b.AddBytes(text(cbasn1.PrintableString, strconv.Itoa(m.kind))) }},
		{scep.OIDTransactionID, func(b *cryptobyte.Builder) { b.AddBytes(m.transaction) }},
		{scep.OIDSenderNonce, func(b *cryptobyte.Builder) { b.AddASN1OctetString(m.nonce) }},
	} {
		var b cryptobyte.Builder
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(a.oid)
			b.AddASN1(cbasn1.SET, a.value)
		})
		one, err := b.Bytes()
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	slices.SortFunc(all, bytes.Compare)
	var set cryptobyte.Builder
	set.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(bytes.Join(all, nil)) })
	attributes, err := set.Bytes()
	if err != nil {
		return nil, err
	}
	signature, err := rsa.SignPKCS1v15(rand.Reader, as.key, m.hash, sum(attributes))
	if err != nil {
		return nil, err
	}
	return signedData(as.cert, name, content, attributes, signature)
}

func signedData(cert *cms.Certificate, digest asn1.ObjectIdentifier, content, attributes, signature []byte) ([]byte, error) {
	const tag0 = cbasn1.Tag(0xa0)
	var b cryptobyte.Builder
	addInfo(&b, oidSignedData, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) { addAlgorithm(b, digest, false) })
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidData)
			b.AddASN1(tag0, func(b *cryptobyte.Builder) { b.AddASN1OctetString(content) })
		})
		b.AddASN1(tag0, func(b *cryptobyte.Builder) { b.AddBytes(cert.Raw) })
		b.AddASN1(cbasn1.SET, func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				addName(b, cert)
				addAlgorithm(b, digest, false)
				b.AddBytes(append([]byte{byte(tag0)}, attributes[1:]...))
				addAlgorithm(b, cms.OIDRSAEncryption, true)
				b.AddASN1OctetString(signature)
			})
		})
	})
	return b.Bytes()
}

func addInfo(b *cryptobyte.Builder, kind asn1.ObjectIdentifier, body cryptobyte.BuilderContinuation) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(kind)
		b.AddASN1(cbasn1.Tag(0xa0), func(b *cryptobyte.Builder) { b.AddASN1(cbasn1.SEQUENCE, body) })
	})
}

func addName(b *cryptobyte.Builder, c *cms.Certificate) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(c.RawIssuer)
		b.AddASN1(cbasn1.INTEGER, func(b *cryptobyte.Builder) { b.AddBytes(c.RawSerial) })
	})
}

func addAlgorithm(b *cryptobyte.Builder, kind asn1.ObjectIdentifier, null bool) {
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(kind)
		if null {
			b.AddASN1NULL()
		}
	})
}
