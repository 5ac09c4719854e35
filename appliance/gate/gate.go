// Package gate is where strangers' bytes come in: it puts the protocols on the
// paths of the devices' listener, and makes a bounded call of each request to the
// operators' API.
//
// # What a caller may rely on
//
// To devices only what is routed here is served: the SCEP paths of configured
// profiles. Everything else is answered 404 with a fixed text and recorded by
// nobody, as it asks for nothing. From operators every request goes on to the
// authority, which decides and records.
//
// # What it does not protect against
//
// The gate's word is not proof: the authority verifies all of it again.
package gate

import (
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/scep"
)

// Devices returns the handler of the devices' listener. brokenPerMinute is how many
// envelopes a source may get wrong; 0 for the protocol's own default.
func Devices(authority protocol.Authority, keys protocol.Keys, brokenPerMinute int, now func() time.Time, log *zap.Logger) http.Handler {
	handler := scep.NewHandler(scep.Options{Authority: authority, Keys: keys, BrokenPerMinute: brokenPerMinute, Now: now, Log: log})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// No ServeMux, which redirects paths that are not clean: a SCEP client does
		// not follow, and the handler has its own list of paths.
		if isSCEP(r.URL.Path) {
			handler.ServeHTTP(w, r)
			return
		}
		http.NotFound(w, r)
	})
}

func isSCEP(path string) bool {
	const prefix = "/scep/"
	return len(path) > len(prefix) && path[:len(prefix)] == prefix
}
