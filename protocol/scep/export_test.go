package scep

import (
	"go.uber.org/zap"

	"github.com/postern-pki/postern/protocol/cms"
)

// DecodeMessage is for FuzzQuery.
var DecodeMessage = decodeMessage

// CheckContent has content looked at as the handler does; nil is what makes a
// parser panic. It reports whether the message is refused, and why.
func CheckContent(e *cms.Envelope, log *zap.Logger) (refused bool, why string) {
	x := &exchange{handler: &handler{log: log}}
	no := x.checkContent(e, nil, nil, false)
	if no == nil {
		return false, ""
	}
	return true, no.why
}
