package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/postern-pki/postern/protocol/scep/client"
)

// device is what the commands that act as a device share.
type device struct {
	url, fingerprint, trust string
	out                     string
	keyFile                 string
	keySize                 int
}

func (d *device) flags(c *cobra.Command, enrolls bool) {
	f := c.Flags()
	f.StringVar(&d.url, "url", "", "the profile's `URL`, such as https://host/scep/wifi")
	f.StringVar(&d.fingerprint, "ca-fingerprint", "", "`SHA256` of the CA's or root's certificate, hex")
	f.StringVar(&d.trust, "tls-ca", "", "PEM `file` that the server's TLS is trusted by, beside the system's")
	if enrolls {
		f.StringVar(&d.out, "out", "", "new `folder` for key, certificate and CA")
		f.StringVar(&d.keyFile, "key", "", "PEM `file` with the RSA key (default: a new one)")
		f.IntVar(&d.keySize, "key-size", 2048, "`bits` of a new RSA key")
	}
}

// client makes the SCEP client that the flags ask for.
func (d *device) client(needFingerprint bool) (*client.Client, error) {
	if !strings.HasPrefix(d.url, "https://") && !strings.HasPrefix(d.url, "http://") {
		return nil, misused("--url https://host/scep/PROFILE", "no URL: %q", d.url)
	}
	if sum, err := hex.DecodeString(strings.ReplaceAll(d.fingerprint, ":", "")); needFingerprint && (err != nil || len(sum) != sha256.Size) {
		return nil, misused("--ca-fingerprint, from: openssl x509 -in ca.pem -noout -fingerprint -sha256", "the CA's SHA-256 is needed, 64 hexadecimal digits: %q", d.fingerprint)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if d.trust != "" {
		data, err := os.ReadFile(d.trust)
		if err != nil {
			return nil, failed("", "reading --tls-ca: %w", err)
		}
		if !roots.AppendCertsFromPEM(data) {
			return nil, failed("--tls-ca ca.pem", "%s holds no PEM certificate", d.trust)
		}
	}
	return &client.Client{URL: d.url, CAFingerprint: d.fingerprint, HTTP: &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, Proxy: http.ProxyFromEnvironment},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("a SCEP server does not redirect")
		},
	}}, nil
}

// prepare makes sure of the server before it makes anything, so that what failed
// here can be tried again. Then it reads the key, or makes one and keeps it before it
// is used: after a lost answer the same request can be sent again.
func (d *device) prepare(ctx context.Context, cl *client.Client) (*rsa.PrivateKey, error) {
	if _, err := os.Lstat(d.out); err == nil {
		return nil, failed("--out names a folder that is not there yet; --key FILE takes the key of another", "%s is there already", d.out)
	}
	if _, err := cl.CACert(ctx); err != nil {
		return nil, failed(serverHint(err), "%w", err)
	}
	return d.key()
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
	return "postern status prints each profile's URL"
}

func (d *device) key() (*rsa.PrivateKey, error) {
	var key *rsa.PrivateKey
	if d.keyFile != "" {
		var err error
		if key, err = readKey(d.keyFile); err != nil {
			return nil, err
		}
	} else {
		if d.keySize < 1024 || d.keySize > 8192 {
			return nil, misused("--key-size 2048", "an RSA key has 1024 to 8192 bits here")
		}
		var err error
		if key, err = rsa.GenerateKey(rand.Reader, d.keySize); err != nil {
			return nil, fmt.Errorf("making a key: %w", err)
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(d.out, 0o700); err != nil {
		return nil, failed("--out names a folder that can be made", "%w", err)
	}
	return key, put(filepath.Join(d.out, "key.pem"), "PRIVATE KEY", der, 0o600)
}

func put(path, kind string, der []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Close())
}

func readPEM(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, failed("", "%w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, failed("openssl x509 and openssl pkey write PEM", "%s is not PEM", path)
	}
	return block.Bytes, nil
}

func readKey(path string) (*rsa.PrivateKey, error) {
	der, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(der)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, failed("SCEP answers RSA keys alone", "%s holds no RSA key", path)
	}
	return key, nil
}

// maxChallenge is what a challengePassword can hold (RFC 2985, section 5.4.1).
const maxChallenge = 255

// secret reads a challenge from a file, standard input or the terminal: never
// from argv, which everybody on the machine can read.
func (a *app) secret(ctx context.Context, path string) ([]byte, error) {
	in, read := a.in, func(in io.Reader) ([]byte, error) { return io.ReadAll(io.LimitReader(in, maxChallenge+3)) }
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, failed("", "reading the challenge: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	} else if f, ok := a.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		state, err := term.GetState(int(f.Fd()))
		if err != nil {
			return nil, fmt.Errorf("reading the challenge: %w", err)
		}
		defer func() { _ = term.Restore(int(f.Fd()), state) }()
		_, _ = io.WriteString(a.errOut, "challenge: ")
		defer func() { _, _ = io.WriteString(a.errOut, "\n") }()
		read = func(io.Reader) ([]byte, error) { return term.ReadPassword(int(f.Fd())) }
	}
	type answer struct {
		text []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		text, err := read(in)
		got <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("reading the challenge: %w", ctx.Err())
	case g := <-got:
		text := bytes.TrimRight(g.text, "\r\n")
		if g.err != nil {
			return nil, failed("", "reading the challenge: %w", g.err)
		}
		if len(text) == 0 || len(text) > maxChallenge {
			return nil, failed("postern challenge create prints one", "a challenge has 1 to %d octets", maxChallenge)
		}
		return text, nil
	}
}
