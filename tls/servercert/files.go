package servercert

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// maxFile is far above any chain or key, and keeps a wrong path from being read
// for ever.
const maxFile = 1 << 20

// FilesOptions are what [NewFiles] needs.
type FilesOptions struct {
	Certificate string        // PEM, the leaf first
	Key         string        // PEM; mode 0600 or 0640, or less
	Every       time.Duration // how often the files are looked at; 0: 1 min
	Log         *zap.Logger
}

// Files is a server certificate that somebody else renews, in two files. It is
// safe for concurrent use.
type Files struct {
	options FilesOptions
	current atomic.Pointer[tls.Certificate]

	mu   sync.Mutex  // guards what is below
	used [2][32]byte // digests of the pair in use
	said string      // the error that was logged last
}

// NewFiles returns a source that has read the pair. A pair that is broken,
// expired or open to others is an error now, and is left alone later.
func NewFiles(o FilesOptions) (*Files, error) {
	if o.Certificate == "" || o.Key == "" || o.Every < 0 {
		return nil, fmt.Errorf("%w: a certificate and a key file are needed", ErrOptions)
	}
	if o.Every == 0 {
		o.Every = time.Minute
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	s := &Files{options: o}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// GetCertificate is for [tls.Config]. It never waits.
func (s *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current.Load(), nil
}

// Leaf returns the certificate in use.
func (s *Files) Leaf() *x509.Certificate { return s.current.Load().Leaf }

// Run looks at the files until ctx ends, and takes a new pair into use. A broken
// one is logged once and the old one stays.
func (s *Files) Run(ctx context.Context) error {
	for sleep(ctx, s.options.Every) {
		// The error was logged, and the next look may find the pair mended.
		_ = s.Reload()
	}
	return nil
}

// Reload reads the files now. Where they hold what is in use already, or nothing
// that can be used, it changes nothing; the latter is an error.
func (s *Files) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.reload()
	switch {
	case err == nil:
		s.said = ""
	case err.Error() != s.said: // once, and not at every look
		s.said = err.Error()
		s.options.Log.Error("server certificate not loaded", zap.String("file", s.options.Certificate), zap.Error(err))
	}
	return err
}

func (s *Files) reload() error {
	cert, key, err := s.read()
	if err != nil {
		return err
	}
	defer clear(key)
	used := [2][32]byte{sha256.Sum256(cert), sha256.Sum256(key)}
	if used == s.used {
		return nil
	}
	c, err := pair(cert, key)
	if err != nil {
		return err
	}
	s.current.Store(c)
	s.used = used
	s.options.Log.Info("server certificate", zap.String("serial", c.Leaf.SerialNumber.Text(16)), zap.Time("not_after", c.Leaf.NotAfter))
	return nil
}

func (s *Files) read() (cert, key []byte, err error) {
	if cert, err = readFile(s.options.Certificate, 0o777); err != nil {
		return nil, nil, err
	}
	if key, err = readFile(s.options.Key, 0o640); err != nil {
		return nil, nil, err
	}
	return cert, key, nil
}

// readFile reads a regular file that has no permission bits beside those allowed.
func readFile(name string, allowed os.FileMode) (b []byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("servercert: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("servercert: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, fmt.Errorf("%w: %s is no file of at most %d bytes", ErrOptions, name, maxFile)
	}
	if st.Mode().Perm()&^allowed != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, wants at most %04o (chmod %04o %s)", ErrMode, name, st.Mode().Perm(), allowed, allowed, name)
	}
	return io.ReadAll(io.LimitReader(f, maxFile)) // it may be growing
}

func pair(cert, key []byte) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("servercert: %w", err)
	}
	signer, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: a key that does not sign", ErrOptions)
	}
	return assemble(c.Certificate, signer, time.Now())
}
