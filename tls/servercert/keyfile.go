package servercert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// KeyFile returns the software key in a PEM file of mode 0600 or 0640, or less:
// where the token is too slow for TLS, or should have no part in it. A file that is
// not there is made, with a P-256 key; its folder has to be there.
func KeyFile(name string) (crypto.Signer, error) {
	b, err := readFile(name, 0o640)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(name)
	}
	if err != nil {
		return nil, err
	}
	defer clear(b)
	block, rest := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%w: %s holds no PEM", ErrOptions, name)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, fmt.Errorf("%w: %s holds more than one key", ErrOptions, name)
	}
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("%w: %s holds a %q, wants a PRIVATE KEY", ErrOptions, name, block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("servercert: %s: %w", name, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%w: %s holds a key that does not sign", ErrOptions, name)
	}
	return signer, nil
}

// makeKey writes a new key under another name and links it, so that the file is
// whole or not there, and one that somebody else made meanwhile stays.
func makeKey(name string) (_ crypto.Signer, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("servercert: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("servercert: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".key") // of mode 0600
	if err != nil {
		return nil, fmt.Errorf("servercert: making %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("servercert: making %s: %w", name, err)
	}
	if err := os.Link(f.Name(), name); err != nil {
		return nil, fmt.Errorf("servercert: making %s: %w", name, err)
	}
	return key, nil
}
