package scep

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"net/http"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

// sessionKeyOptions says how long the key in an envelope is. It is the standard
// library's type, which that calls dangerous: a caller could be an oracle of its
// padding. Every client of SCEP has this key transport and no other (RFC 8894,
// section 3.1), and [protocol.Keys] has no error for the padding.
//
//lint:ignore SA1019 see above
type sessionKeyOptions = rsa.PKCS1v15DecryptOptions //nolint:staticcheck // see above

// transport returns how the token is to open what a recipient was sent; false for a
// key transport that is not served. Which one it is anybody can see.
func transport(r cms.Recipient, size int) (crypto.DecrypterOpts, bool) {
	switch {
	case r.Algorithm.Equal(cms.OIDRSAEncryption):
		return &sessionKeyOptions{SessionKeyLen: size}, true
	case r.Algorithm.Equal(cms.OIDRSAESOAEP) && r.OAEPHash != 0:
		return &protocol.OAEPOptions{KeyLen: size, Hash: r.OAEPHash, MGF: r.OAEPMGF}, true
	default:
		return nil, false
	}
}

// sentBy notes what the header of a message tells of its sender.
func (x *exchange) sentBy(r *http.Request) {
	agent := r.UserAgent()
	x.record.Client.Agent = agent[:min(len(agent), protocol.MaxAgent)]
	if !r.ProtoAtLeast(1, 1) {
		x.odd(protocol.TraitHTTP10)
	}
	if r.Host == "" {
		x.odd(protocol.TraitNoHost)
	}
}

// odd notes traits of the message's sender.
func (x *exchange) odd(t protocol.Traits) { x.record.Client.Traits |= t }

// oddSigned notes what is unusual about the layer of the signature.
func (x *exchange) oddSigned(s *cms.Signed) {
	if s.Unsorted() {
		x.odd(protocol.TraitUnsorted)
	}
	if s.Digest == crypto.SHA1 {
		x.odd(protocol.TraitSHA1)
	}
	if _, err := x509.ParseCertificate(s.Signer.Raw); err != nil {
		x.odd(protocol.TraitOddCertificate)
	}
}

// oddMessage notes what is unusual about the attributes.
func (x *exchange) oddMessage(m Message) {
	if m.RawTransactionID[0] != byte(cbasn1.PrintableString) {
		x.odd(protocol.TraitStringType)
	}
	if len(m.SenderNonce) != nonceSize {
		x.odd(protocol.TraitNonceLength)
	}
}

// minSigner is the shortest modulus that a signature is verified by, in bits: as
// package rsa has it. There is room in it for any content key.
const minSigner = 1024

// encryptable says why no answer could be encrypted for a signer, or "": to its RSA
// key, or for a new enrollment by an ECDSA key under the challenge, where the
// profile has it so (RFC 8894, section 3.1). Who is none of both is told before
// anything is opened: a certificate that could not be sent must not be issued.
func (x *exchange) encryptable(signer *cms.Certificate) (why string) {
	switch pub := signer.PublicKey.(type) {
	case *rsa.PublicKey:
		if pub.N.BitLen() < minSigner {
			return whyShort
		}
		return ""
	case *ecdsa.PublicKey:
		switch {
		case !x.service.PasswordRecipient:
			return whyNotRSA
		case x.message.Type != PKCSReq:
			return whyNoChallenge
		}
		return ""
	default:
		return whyNotRSA
	}
}

// envelop encrypts what was issued. That a signer without an RSA key showed its
// challenge is the authority's to see to: the gate does not say what it finds in an
// envelope before that is proven to be the signer's.
func (x *exchange) envelop(content []byte, to *cms.Certificate, c cms.Cipher) ([]byte, error) {
	if _, ok := to.PublicKey.(*rsa.PublicKey); ok {
		return cms.Envelop(rand.Reader, content, to, c)
	}
	if !x.service.PasswordRecipient || x.challenge == nil {
		return nil, fmt.Errorf("%w: issued, but nothing to encrypt it to", errOutcome)
	}
	return cms.EnvelopPassword(rand.Reader, content, x.challenge.Bytes(), c)
}
