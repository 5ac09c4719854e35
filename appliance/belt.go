package appliance

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance/sandbox"
	"github.com/postern-pki/postern/audit"
)

// bind drops what the role does not need, for good, and says in the journal what
// the kernel holds.
func (r *running) bind(p sandbox.Profile) error {
	report, err := sandbox.Enter(p)
	if err != nil {
		return fmt.Errorf("the sandbox of %s: %w", r.role, err)
	}
	log := r.env.Zap.Info
	if len(report.Missing) > 0 {
		log = r.env.Zap.Warn
	}
	log("sandbox", zap.Stringer("holds", report))
	return nil
}

// bindKeyholder has the library loaded inside: what it may touch is what the
// library is known to need, and what the configuration adds.
func (r *running) bindKeyholder() error {
	k := sandbox.Keys{State: r.cfg.KeyholderState, Dial: slices.Clone(r.dial)}
	for _, t := range r.cfg.Tokens {
		known := sandbox.Known(t.Module)
		k.Modules = append(k.Modules, known.Modules...)
		k.Secrets = append(append(k.Secrets, known.Secrets...), t.PINPath)
		k.Read = append(append(k.Read, known.Read...), t.Sandbox.Read...)
		k.Tokens = append(append(k.Tokens, known.Tokens...), t.Sandbox.Write...)
		k.Dial = append(append(k.Dial, known.Dial...), t.Sandbox.Connect...)
		k.Sockets = append(k.Sockets, known.Sockets...)
		if t.Sandbox.Network {
			k.Sockets = append(k.Sockets, unix.AF_INET, unix.AF_INET6)
		}
		k.Exec = k.Exec || known.Exec || t.Sandbox.Exec
	}
	if f := r.cfg.TLS.KeyFile; f != "" {
		if _, err := os.Stat(f); err == nil { // else it is made, in the keyholder's folder
			k.Secrets = append(k.Secrets, f)
		}
	}
	if err := folder(k.State); err != nil {
		return err
	}
	return r.bind(sandbox.Keyholder(k))
}

func (r *running) bindAuthority() error {
	if r.env.Boot == "" { // the file that says it is outside
		r.env.Boot = audit.BootID()
	}
	if err := folder(r.cfg.State); err != nil {
		return err
	}
	return r.bind(sandbox.Authority(r.cfg.State, []string{r.cfg.Transcript, r.cfg.ChallengeKeyPath}, r.dial, false))
}

// bindGate is for a gate that has its sockets already.
func (r *running) bindGate() error {
	var certificates []string
	if r.cfg.TLS.Mode == "files" {
		certificates = []string{filepath.Dir(r.cfg.TLS.Certificate), filepath.Dir(r.cfg.TLS.PrivateKey)}
	}
	return r.bind(sandbox.Gate(r.role, r.dial, certificates))
}
