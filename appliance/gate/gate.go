// Package gate is where strangers' bytes come in: it puts the protocols on the
// paths of the devices' listener, and makes a bounded call of each request to the
// operators' API.
//
// # What a caller may rely on
//
// To devices only what is routed here is served: the SCEP paths of configured
// profiles, those of other servers for a default one, and what is asked about certificates. Everything else is answered 404 with a fixed text and recorded by
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
	"github.com/postern-pki/postern/protocol/status"
)

// A DevicesAuthority is what the devices' gate asks.
type DevicesAuthority interface {
	protocol.Authority
	status.Source
}

// DevicesOptions are what [Devices] needs.
type DevicesOptions struct {
	Authority       DevicesAuthority
	Keys            protocol.Keys
	DefaultProfile  string // of paths that name none; "" for none
	BrokenPerMinute int    // how many envelopes a source may get wrong; 0 for the protocol's own default
	Now             func() time.Time
	Log             *zap.Logger
}

// Devices returns the handler of the devices' listener.
func Devices(o DevicesOptions) http.Handler {
	handler := scep.NewHandler(scep.Options{
		Authority: o.Authority, Keys: o.Keys, DefaultProfile: o.DefaultProfile, BrokenPerMinute: o.BrokenPerMinute, Now: o.Now, Log: o.Log,
	})
	certificates := status.NewHandler(status.Options{Source: o.Authority, Now: o.Now, Log: o.Log})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// No ServeMux, which redirects paths that are not clean: a SCEP client does
		// not follow, and the handler has its own list of paths.
		if scep.Serves(r.URL.Path) {
			handler.ServeHTTP(w, r)
			return
		}
		if status.Serves(r.URL.Path) {
			certificates.ServeHTTP(w, r)
			return
		}
		http.NotFound(w, r)
	})
}
