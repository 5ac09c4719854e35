package appliance

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/audit/bundle"
)

// BundleFiles are what a bundle has beside the log: the transcripts of the ceremonies,
// the issuers' certificates, the profiles where the records name their digest, and the
// lists of revoked certificates whose SHA-256 they name.
func BundleFiles(cfg *config.Config, transcripts ...string) ([]bundle.File, error) {
	var out []bundle.File
	add := func(folder, path, digest string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name := folder + filepath.Base(path)
		if i := slices.IndexFunc(out, func(f bundle.File) bool { return f.Name == name }); i >= 0 {
			return fmt.Errorf("%s: the bundle has %s already: give one of the files another name", path, name)
		}
		if digest == "" && folder == "crls/" {
			sum := sha256.Sum256(data)
			digest = hex.EncodeToString(sum[:])
		}
		out = append(out, bundle.File{Name: name, Data: data, Digest: digest})
		return nil
	}
	for _, path := range append([]string{cfg.Transcript}, transcripts...) {
		if err := add("ceremony/", path, ""); err != nil {
			return nil, err
		}
	}
	var issuers []byte
	for _, i := range cfg.Issuers {
		issuers = append(issuers, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.CA.Raw})...)
		for _, c := range i.Chain {
			issuers = append(issuers, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
	}
	out = append(out, bundle.File{Name: "certificates/issuers.pem", Data: issuers})
	seen := map[string]bool{}
	for _, name := range cfg.Policies.Names() {
		p, _ := cfg.Policies.Profile(name)
		if seen[p.Source] {
			continue
		}
		seen[p.Source] = true
		if err := add("policy/", p.Source, cfg.Policies.Digest()); err != nil {
			return nil, err
		}
	}
	lists, err := filepath.Glob(filepath.Join(cfg.State, "crl", "*.crl"))
	if err != nil {
		return nil, err
	}
	for _, path := range lists {
		if err := add("crls/", path, ""); err != nil {
			return nil, err
		}
	}
	return out, nil
}
