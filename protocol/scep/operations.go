package scep

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

// maxBody bounds the message in a POST, in octets.
const maxBody = 64 << 10

const (
	opCaps    = "GetCACaps"
	opCACert  = "GetCACert"
	opNextCA  = "GetNextCACert"
	opMessage = "PKIOperation"
)

// get answers the operations of a GET (RFC 8894, sections 3.5.2, 4.2, 4.3, 4.7).
func (x *exchange) get(ctx context.Context, r *http.Request, q query) (answer, error) {
	switch q.operation {
	case opCaps:
		return x.caps(ctx)
	case opCACert:
		return x.caCert(ctx, q)
	case opNextCA:
		return x.nextCA(ctx)
	case opMessage:
		x.sentBy(r)
		x.odd(protocol.TraitGet)
		if len(q.message) > maxQueryMessage {
			x.record.Bytes = int64(len(q.message))
			return x.refuse(ctx, http.StatusRequestURITooLong, protocol.Unsupported, "message too long")
		}
		message, odd, ok := decodeMessage(q.message)
		x.odd(odd)
		if !ok {
			x.record.Bytes = int64(len(q.message))
			return x.refuse(ctx, http.StatusBadRequest, protocol.Unsupported, "message is not base64")
		}
		return x.receive(ctx, message)
	default:
		return x.refuse(ctx, http.StatusBadRequest, protocol.Unsupported, "unknown operation")
	}
}

// post takes the body for the message, whatever its media type: clients send
// none, or others than RFC 8894, section 4.3 has. A PKIOperation is the only
// thing that can be posted, so some do not name it either.
func (x *exchange) post(ctx context.Context, w http.ResponseWriter, r *http.Request, q query) (answer, error) {
	if q.operation != "" && q.operation != opMessage {
		return x.refuse(ctx, http.StatusBadRequest, protocol.Unsupported, "operation cannot be posted")
	}
	x.record.Operation = opMessage
	x.sentBy(r)
	if r.ContentLength > maxBody {
		x.record.Bytes = r.ContentLength
		return x.refuse(ctx, http.StatusRequestEntityTooLarge, protocol.Unsupported, "message too long")
	}
	body := bytes.NewBuffer(make([]byte, 0, max(0, r.ContentLength)+bytes.MinRead))
	if _, err := body.ReadFrom(http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		x.record.Bytes = int64(body.Len())
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return x.refuse(ctx, http.StatusRequestEntityTooLarge, protocol.Unsupported, "message too long")
		}
		return x.refuse(ctx, http.StatusBadRequest, protocol.Unsupported, "message was cut off")
	}
	return x.receive(ctx, body.Bytes())
}

// receive marks the message's arrival and handles it.
func (x *exchange) receive(ctx context.Context, message []byte) (answer, error) {
	x.arrived = x.now()
	sum := sha256.Sum256(message)
	x.record.MessageDigest, x.record.Bytes = hex.EncodeToString(sum[:]), int64(len(message))
	return x.pkiOperation(ctx, message)
}

// caps lists what the profile offers, one a line (RFC 8894, section 3.5.2).
func (x *exchange) caps(ctx context.Context) (answer, error) {
	var b strings.Builder
	for _, c := range x.service.Capabilities {
		b.WriteString(c)
		b.WriteByte('\n')
	}
	return x.served(ctx, typeText, []byte(b.String()))
}

// caCert sends the certificates of the current generation. The message is an
// identifier of a CA that clients fill with anything, but a number asks for another
// CA than the first.
func (x *exchange) caCert(ctx context.Context, q query) (answer, error) {
	if positive(q.message) {
		return x.refuse(ctx, http.StatusNotFound, protocol.NotFound, "no CA of that number")
	}
	body, err := cms.CertsOnly(x.certsOf(x.service.Current()))
	if err != nil {
		return answer{}, err
	}
	return x.served(ctx, typeCerts, body)
}
