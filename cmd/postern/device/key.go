package device

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// The files of a request's folder.
const (
	keyFile  = "key.pem"
	certFile = "cert.pem"
	caFile   = "ca.pem"
)

// target is where a request's files go.
type target struct {
	server
	out     string
	keyFile string
	keySize int
}

func (t *target) flags(c *cobra.Command) {
	t.messages(c)
	f := c.Flags()
	f.StringVar(&t.out, "out", "", "new `folder` for key, certificate and CA, and for the request while it is pending")
	f.StringVar(&t.keyFile, "key", "", "PEM `file` with the RSA key (default: a new one)")
	f.IntVar(&t.keySize, "key-size", 2048, "`bits` of a new RSA key")
}

// prepare makes sure of the server before it makes anything, so that what failed
// here can be tried again. Then it reads the key, or makes one and keeps it before it
// is used: after a lost answer the same request can be sent again.
func (t *target) prepare(ctx context.Context, cl *client.Client) (*rsa.PrivateKey, error) {
	if _, err := os.Lstat(t.out); err == nil {
		return nil, cli.Failed("--out names a folder that is not there yet; --key FILE takes the key of another", "%s is there already", t.out)
	}
	if _, err := cl.CACert(ctx); err != nil {
		return nil, cli.Failed(serverHint(err), "%w", err)
	}
	key, err := t.key()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := makeDir(t.out); err != nil {
		return nil, err
	}
	return key, put(filepath.Join(t.out, keyFile), "PRIVATE KEY", 0o600, der)
}

func (t *target) key() (*rsa.PrivateKey, error) {
	if t.keyFile != "" {
		return readKey(t.keyFile)
	}
	if t.keySize < 1024 || t.keySize > 8192 {
		return nil, cli.Misused("--key-size 2048", "an RSA key has 1024 to 8192 bits here")
	}
	key, err := rsa.GenerateKey(rand.Reader, t.keySize)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

func readKey(path string) (*rsa.PrivateKey, error) {
	der, err := cli.ReadPEM(path)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(der)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, cli.Failed("SCEP answers RSA keys alone", "%s holds no RSA key", path)
	}
	return key, nil
}

// readIdentity reads the certificate and the key of a folder that enroll made.
func readIdentity(dir string) (*x509.Certificate, *rsa.PrivateKey, error) {
	der, err := cli.ReadPEM(filepath.Join(dir, certFile))
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, cli.Failed("--in names a folder that scep enroll made", "%s: %w", dir, err)
	}
	key, err := readKey(filepath.Join(dir, keyFile))
	return cert, key, err
}

// maxChallenge is what a challengePassword can hold (RFC 2985, section 5.4.1).
const maxChallenge = 255

// secret reads a challenge from a file, standard input or the terminal: never
// from argv, which everybody on the machine can read.
func (e commands) secret(ctx context.Context, path string) ([]byte, error) {
	in, read := e.In, func(in io.Reader) ([]byte, error) { return io.ReadAll(io.LimitReader(in, maxChallenge+3)) }
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, cli.Failed("", "reading the challenge: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	} else if f, ok := e.In.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		state, err := term.GetState(int(f.Fd()))
		if err != nil {
			return nil, fmt.Errorf("reading the challenge: %w", err)
		}
		defer func() { _ = term.Restore(int(f.Fd()), state) }()
		_, _ = io.WriteString(e.ErrOut, "challenge: ")
		defer func() { _, _ = io.WriteString(e.ErrOut, "\n") }()
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
			return nil, cli.Failed("", "reading the challenge: %w", g.err)
		}
		if len(text) == 0 || len(text) > maxChallenge {
			return nil, cli.Failed("postern challenge create prints one", "a challenge has 1 to %d octets", maxChallenge)
		}
		return text, nil
	}
}
