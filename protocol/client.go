package protocol

import (
	"math/bits"
	"slices"
	"strings"
)

// MaxAgent bounds what is kept of a User-Agent, in octets.
const MaxAgent = 128

// A Client is what a message shows of the software that sent it, for the log. It
// is the sender's word, but for what the authority finds in the proof itself, and
// nothing is decided by it.
type Client struct {
	Agent  string // the HTTP header User-Agent, as it came
	Traits Traits
}

// Traits are habits of clients that newer ones do not have: a closed set, so that
// a record of them is bounded and a report can count them.
type Traits uint64

// The traits. Their numbers are between the processes of one start alone; a record
// has their words.
const (
	TraitHTTP10           Traits = 1 << iota
	TraitNoHost                  // no Host in the header
	TraitGet                     // a message by GET
	TraitRawPlus                 // base64 with "+" that is not escaped
	TraitSpace                   // base64 with spaces where "+" was meant
	TraitLines                   // base64 in lines
	TraitURLAlphabet             // base64 in the alphabet for URLs
	TraitUnpadded                // base64 without its padding
	TraitEscapedTwice            // base64 that was percent-escaped twice
	TraitBER                     // an encoding that is not DER
	TraitUnsorted                // signed attributes out of order
	TraitStringType              // a transactionID that is no PrintableString
	TraitNonceLength             // a nonce that has not 16 octets
	TraitOddCertificate          // a signer certificate that crypto/x509 refuses
	TraitOAEP                    // RSAES-OAEP key transport
	TraitSHA1                    // signed with SHA-1
	TraitMD5                     // signed with MD5
	TraitDES3                    // encrypted with triple DES
	TraitDES                     // encrypted with single DES
	TraitSHA1CSR                 // the CSR is signed with SHA-1
	TraitRenewalByPKCSReq        // a renewal of messageType 19

	traitsEnd
)

// traitWords are the words of records, in the order of the traits.
var traitWords = [...]string{
	"http-1.0", "no-host", "get", "base64-raw-plus", "base64-space", "base64-lines", "base64-url", "base64-unpadded", "escaped-twice",
	"ber", "unsorted-attributes", "string-type", "nonce-length", "odd-certificate", "oaep", "sha-1", "md5", "3des", "des",
	"sha-1-csr", "renewal-by-pkcsreq",
}

// traitSays are sentences for people, in the order of the traits.
var traitSays = [...]string{
	"HTTP/1.0", "no Host in the HTTP header", "messages by GET", "base64 in a URL with + that is not escaped", "base64 in a URL with spaces for +",
	"base64 in a URL in lines", "base64 in a URL in the alphabet for URLs", "base64 in a URL without padding", "base64 in a URL that is escaped twice",
	"BER that is not DER", "signed attributes out of order", "a transactionID that is no PrintableString", "a nonce that has not 16 octets",
	"a signer certificate that is not well formed", "RSAES-OAEP key transport", "signed with SHA-1", "signed with MD5, which is refused",
	"encrypted with triple DES", "encrypted with single DES, which is refused", "a CSR that is signed with SHA-1", "a renewal as PKCSReq, not as RenewalReq",
}

// Says returns the traits in words for people.
func (t Traits) Says() string {
	var out []string
	for t = t.Known(); t != 0; t &= t - 1 {
		out = append(out, traitSays[bits.TrailingZeros64(uint64(t))])
	}
	return strings.Join(out, "; ")
}

// Known returns the traits of t that there are.
func (t Traits) Known() Traits { return t & (traitsEnd - 1) }

// Words returns the traits in their order; nil if there are none.
func (t Traits) Words() []string {
	var out []string
	for t = t.Known(); t != 0; t &= t - 1 {
		out = append(out, traitWords[bits.TrailingZeros64(uint64(t))])
	}
	return out
}

// TraitsOf reads words; those that it does not know it leaves out.
func TraitsOf(words []string) Traits {
	var t Traits
	for _, w := range words {
		if i := slices.Index(traitWords[:], w); i >= 0 {
			t |= 1 << i
		}
	}
	return t
}
