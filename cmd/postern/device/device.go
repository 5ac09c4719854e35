// Package device is `postern scep`: the commands that act as a device of any SCEP
// server (RFC 8894).
//
// # What a caller may rely on
//
// A key is on disk, readable by its owner alone, before it is used, and so is what
// it takes to ask again for a request that is pending. No challenge is an
// argument. Nothing is written of an answer that was not verified, and no file is
// replaced but the state of a request. Every wait ends: a question to the server
// after a minute, --wait when it says.
//
// # What it does not protect against
//
// Whoever reads the folder has the key.
package device

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// ExitPending is the status of a command that asked for a certificate and got
// neither that nor a refusal: not 0, because there is no certificate, and not 1,
// because to begin anew would be wrong.
const ExitPending = 3

// Command returns `scep` with all its commands.
func Command(env cli.Env) *cobra.Command {
	c := &cobra.Command{
		Use: "scep", Short: "Act as a device: enroll and renew by SCEP",
		Long: `Act as a device of any SCEP server: enroll, renew, ask, and find out what a server offers.

enroll, renew and poll exit 0 with a certificate, 1 without one, 2 misused, and 3 while the CA has not
decided: a script then runs "postern scep poll" later, and does not begin anew.`,
	}
	e := commands{env}
	c.AddCommand(e.enroll(), e.renew(), e.poll(), e.getCert(), e.getCRL(), e.getCaps(), e.getCA(), e.getNextCA(), e.probe())
	return c
}

// commands make them.
type commands struct{ cli.Env }

// server says which server is asked, and how. It is kept with a request that is
// pending.
type server struct {
	URL         string `json:"url"`
	Fingerprint string `json:"ca_fingerprint"`
	TLSCA       string `json:"tls_ca,omitempty"`
	CACerts     string `json:"ca_certs,omitempty"`
	Ident       string `json:"ca_identifier,omitempty"`
	Method      string `json:"method,omitempty"`
	Digest      string `json:"digest,omitempty"`
	Cipher      string `json:"cipher,omitempty"`
	NoProxy     bool   `json:"no_proxy,omitempty"`
}

func (s *server) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&s.URL, "url", "", "the profile's `URL`, such as https://host/scep/wifi")
	f.StringVar(&s.TLSCA, "tls-ca", "", "PEM `file` that the server's TLS is trusted by, beside the system's")
	f.StringVar(&s.Ident, "ca-identifier", "", "`text` that the server is sent as the message of GetCACaps, GetCACert and GetNextCACert")
	f.BoolVar(&s.NoProxy, "no-proxy", false, "ask the server itself, whatever HTTPS_PROXY says")
}

// messages adds what a pkiMessage needs.
func (s *server) messages(c *cobra.Command) {
	s.flags(c)
	s.anchor(c)
	f := c.Flags()
	f.StringVar(&s.Method, "method", "", "send messages by `GET or POST` (default: what the server says)")
	f.StringVar(&s.Digest, "digest", "SHA-256", "`digest` of messages: SHA-256, SHA-384, SHA-512; SHA-1 for a server that has no other")
	f.StringVar(&s.Cipher, "cipher", "AES-128-CBC", "`cipher` of messages: AES-128-CBC, AES-192-CBC, AES-256-CBC; 3DES for a server that has no other")
}

// anchor adds what the CA is known by.
func (s *server) anchor(c *cobra.Command) {
	c.Flags().StringVar(&s.Fingerprint, "ca-fingerprint", "", "`SHA256` of the CA's or root's certificate, hex")
	c.Flags().StringVar(&s.CACerts, "ca-certs", "", "PEM `file` with the CA's and RA's certificates, such as getnextca writes; then GetCACert is not asked")
}

// client makes the SCEP client that the flags ask for.
func (s *server) client(needFingerprint bool) (*client.Client, error) {
	if !strings.HasPrefix(s.URL, "https://") && !strings.HasPrefix(s.URL, "http://") {
		return nil, cli.Misused("--url https://host/scep/PROFILE", "no URL: %q", s.URL)
	}
	if sum, err := hex.DecodeString(strings.ReplaceAll(s.Fingerprint, ":", "")); needFingerprint && (err != nil || len(sum) != sha256.Size) {
		return nil, cli.Misused("--ca-fingerprint, from: openssl x509 -in ca.pem -noout -fingerprint -sha256", "the CA's SHA-256 is needed, 64 hexadecimal digits: %q", s.Fingerprint)
	}
	cl := &client.Client{URL: s.URL, CAFingerprint: s.Fingerprint, CAIdentifier: s.Ident, Method: strings.ToUpper(s.Method)}
	if cl.Method != "" && cl.Method != http.MethodGet && cl.Method != http.MethodPost {
		return nil, cli.Misused("--method GET or --method POST", "no method %q", s.Method)
	}
	var err error
	if cl.Digest, err = digest(s.Digest); err != nil {
		return nil, err
	}
	if cl.Cipher, err = cipher(s.Cipher); err != nil {
		return nil, err
	}
	if s.CACerts != "" {
		if cl.CACerts, err = readCertificates(s.CACerts); err != nil {
			return nil, err
		}
	}
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	proxy := http.ProxyFromEnvironment
	if s.NoProxy {
		proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	}
	cl.HTTP = &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, Proxy: proxy},
	}
	return cl, nil
}

// roots are what the server's TLS is trusted by.
func (s *server) roots() (*x509.CertPool, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if s.TLSCA == "" {
		return roots, nil
	}
	data, err := os.ReadFile(s.TLSCA)
	if err != nil {
		return nil, cli.Failed("", "reading --tls-ca: %w", err)
	}
	if !roots.AppendCertsFromPEM(data) {
		return nil, cli.Failed("--tls-ca ca.pem", "%s holds no PEM certificate", s.TLSCA)
	}
	return roots, nil
}

func digest(name string) (crypto.Hash, error) {
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA1} {
		if strings.EqualFold(name, h.String()) {
			return h, nil
		}
	}
	if name == "" {
		return crypto.SHA256, nil
	}
	return 0, cli.Misused("--digest SHA-256", "no digest %q", name)
}

func cipher(name string) (cms.Cipher, error) {
	for _, c := range []cms.Cipher{cms.AES128CBC, cms.AES192CBC, cms.AES256CBC, cms.DES3CBC} {
		if strings.EqualFold(name, c.String()) {
			return c, nil
		}
	}
	switch {
	case name == "":
		return cms.AES128CBC, nil
	case strings.EqualFold(name, "3DES"):
		return cms.DES3CBC, nil
	}
	return 0, cli.Misused("--cipher AES-128-CBC", "no cipher %q", name)
}

// readCertificates reads all certificates of a PEM file.
func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, cli.Failed("", "%w", err)
	}
	var out []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, cli.Failed("openssl x509 writes PEM", "%s: %w", path, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, cli.Failed("openssl x509 writes PEM", "%s holds no PEM certificate", path)
	}
	return out, nil
}

// makeDir makes the folder that a command writes into: a new one, so that nothing
// is lost.
func makeDir(dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		return cli.Failed("--out names a folder that is not there yet; --key FILE takes the key of another", "%s is there already", dir)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return cli.Failed("--out names a folder that can be made", "%w", err)
	}
	return nil
}

// put writes PEM to a new file.
func put(path, kind string, mode os.FileMode, ders ...[]byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return cli.Failed("move what is in the way", "%w", err)
	}
	for _, der := range ders {
		err = errors.Join(err, pem.Encode(f, &pem.Block{Type: kind, Bytes: der}))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// serverHint says what to do about a server that is not the right one.
func serverHint(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "--tls-ca FILE names what the server's TLS is trusted by"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "the URL has to name the server as its certificate does"
	}
	switch {
	case errors.Is(err, client.ErrFingerprint):
		return "compare it with the one that the CA's keeper gave you: this may be another CA"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, context.DeadlineExceeded):
		return "are host and port right, and is the service up?"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "are host and port right, and is the service up?"
	}
	if e, ok := errors.AsType[*client.FailError](err); ok && e.Name == "badCertId" {
		return "the server has none of that serial number, or of that transaction"
	}
	return "postern status prints each profile's URL; postern scep probe looks at any server"
}
