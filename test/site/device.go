package site

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
)

// Root is the repository's folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working folder")
}

// ForTest makes and starts a site in a temporary folder: with the binaries in
// POSTERN_BIN, or with ones that it builds. The caller calls end.
func ForTest(ctx context.Context, profiles string) (s *Site, end func(), err error) {
	root, err := Root()
	if err != nil {
		return nil, nil, err
	}
	tmp, err := os.MkdirTemp("", "postern-test-")
	if err != nil {
		return nil, nil, err
	}
	clean := func() { _ = os.RemoveAll(tmp) }
	bin := os.Getenv("POSTERN_BIN")
	if bin == "" {
		bin = filepath.Join(tmp, "bin")
		cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+"/", "./cmd/...")
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			clean()
			return nil, nil, fmt.Errorf("building: %w: %s", err, out)
		}
	}
	s, _, err = Make(ctx, filepath.Join(tmp, "site"), Options{
		Bin: bin, Plan: filepath.Join(root, "hsm/ceremony/scripts/demo.yaml"), Profiles: profiles, DevicePort: "0", OperatorPort: "0",
	})
	if err == nil {
		err = s.Start(ctx)
	}
	if err != nil {
		clean()
		return nil, nil, err
	}
	return s, func() { _ = s.Stop(); clean() }, nil
}

// Device returns a SCEP client of a profile, with a connection of its own.
func (s *Site) Device(ctx context.Context, profile string) (*client.Client, error) {
	url, err := s.URL(ctx, profile)
	if err != nil {
		return nil, err
	}
	fingerprint, err := s.Fingerprint(ctx)
	if err != nil {
		return nil, err
	}
	h, err := s.HTTP()
	return &client.Client{URL: url, HTTP: h, CAFingerprint: fingerprint}, err
}

// HTTP returns a client that trusts the site's CA.
func (s *Site) HTTP(certs ...tls.Certificate) (*http.Client, error) {
	pem, err := os.ReadFile(s.CA())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, Certificates: certs}, MaxIdleConnsPerHost: 64,
	}}, nil
}

// Challenges creates one challenge for each subject, in one act.
func (s *Site) Challenges(ctx context.Context, profile string, subjects ...string) ([]Challenge, error) {
	out, errOut, code := s.Postern(ctx, []byte(strings.Join(subjects, "\n")), "challenge", "create", "--profile", profile, "--batch", "-", "--output", "json")
	if code != 0 {
		return nil, fmt.Errorf("postern challenge create --batch: %s", errOut)
	}
	var all []Challenge
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var c Challenge
		if err := dec.Decode(&c); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
