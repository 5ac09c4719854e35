package gate_test

import (
	"context"
	"crypto"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/gate"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/status"
)

// nobody is an authority and keys that must not be asked.
type nobody struct{ t *testing.T }

func (n nobody) Service(context.Context, string) (protocol.Service, error) {
	return protocol.Service{}, protocol.ErrUnknownProfile
}

func (n nobody) Submit(context.Context, protocol.Request) (protocol.Outcome, error) {
	n.t.Error("a request was submitted")
	return protocol.Outcome{}, nil
}

func (n nobody) List(context.Context, string, [32]byte) (status.List, error) {
	return status.List{}, status.ErrUnknownIssuer
}

func (n nobody) Answer(context.Context, string, status.CertID) (status.Answer, error) {
	return status.Answer{}, status.ErrUnknownIssuer
}

func (n nobody) Malformed(context.Context, string) error { return status.ErrUnknownIssuer }

func (n nobody) Reject(context.Context, protocol.Rejected) (string, error) { return "id", nil }

func (n nobody) Decrypter(context.Context, string, []byte) (crypto.Decrypter, error) {
	n.t.Error("a key was asked for")
	return nil, protocol.ErrUnknownProfile
}

func (n nobody) Signer(context.Context, string, []byte) (crypto.Signer, error) {
	n.t.Error("a key was asked for")
	return nil, protocol.ErrUnknownProfile
}

// What is not routed is answered 404, and leads nowhere else.
func TestWhatIsNotRoutedIsNotFound(t *testing.T) {
	h := gate.Devices(gate.DevicesOptions{Authority: nobody{t}, Keys: nobody{t}, Now: time.Now, Log: zap.NewNop()})
	for _, path := range []string{
		"/", "/scep", "/scep/", "//scep/demo", "//evil.example/..", "/x/../scep/demo", "/./scep/demo", "/api/v1/status", "/SCEP/demo",
		"/scep/unknown", "/scep/..", "/scep/%2e%2e/api", "/scep/a%2fb", "/scep//demo",
		"/crl/", "/crl/x", "/crl/x.crl", "/crl/../api", "/ocsp/", "/ocsp/x/y", "/ocsp/%2e%2e/x",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodConnect, "BREW"} {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			u, err := r.URL.Parse("https://device.example" + path)
			if err != nil {
				t.Fatal(err)
			}
			r.Method, r.URL = method, u
			h.ServeHTTP(w, r)
			// A method is looked at before a profile, on the paths of SCEP alone.
			if ok := w.Code == http.StatusNotFound || w.Code == http.StatusMethodNotAllowed; !ok || w.Header().Get("Location") != "" {
				t.Errorf("%s %s: %d, to %q", method, path, w.Code, w.Header().Get("Location"))
			}
		}
	}
}
