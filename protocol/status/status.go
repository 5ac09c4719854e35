// Package status answers the world about certificates: lists of what is revoked (RFC
// 5280) and OCSP (RFC 6960, in the profile of RFC 5019), over HTTP.
//
// # What a caller may rely on
//
// A question is read within fixed bounds, and strictly: what is not one certificate in
// one request of at most 1 KiB is malformedRequest. The handler keeps no answer longer
// than its source lets it: each question is put to the [Source], so that a revocation
// shows in the next answer. Answers carry their digest and a short life for caches. Of
// a serial number that was never issued nothing is said but unauthorized, which
// nobody signs.
//
// # What it does not protect against
//
// A nonce is ignored, as RFC 5019 lets a responder do: an answer is as fresh as its
// thisUpdate says. A cache on the way may keep an answer until its nextUpdate.
package status

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"time"
)

// Errors of a [Source].
var (
	ErrUnknownIssuer = errors.New("status: no such issuer, or it has nothing of that kind")
	ErrUnauthorized  = errors.New("status: nothing is said about this certificate")
)

// A CertID names a certificate as a question does (RFC 6960, section 4.1.1).
type CertID struct {
	Hash     crypto.Hash // SHA-1 or SHA-256
	NameHash []byte      // of the issuer's name
	KeyHash  []byte      // of the issuer's key
	Serial   string      // lowercase hex, without zeros at its begin
}

// An Answer is a signed response, and until when it is good.
type Answer struct {
	DER        []byte
	ThisUpdate time.Time
	NextUpdate time.Time
}

// A List is the newest list of an issuer.
type List struct {
	Answer
	Number uint64
}

// Digest is the SHA-256 of the list.
func (l List) Digest() [sha256.Size]byte { return sha256.Sum256(l.DER) }

// A Source has the lists and the answers. It is safe for concurrent use.
type Source interface {
	// List returns the newest list of an issuer, without its octets where they have
	// the digest already that the caller knows. The error may be [ErrUnknownIssuer].
	List(ctx context.Context, issuer string, have [sha256.Size]byte) (List, error)
	// Answer returns the newest answer. The error may be [ErrUnknownIssuer] or
	// [ErrUnauthorized].
	Answer(ctx context.Context, issuer string, id CertID) (Answer, error)
	// Malformed counts a question that could not be read.
	Malformed(ctx context.Context, issuer string) error
}
