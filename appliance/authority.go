package appliance

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/authority/status"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/appliance/store/sqlite"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/ceremony/newlog"
	"github.com/postern-pki/postern/hsm/ceremony/transcript"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/tls/servercert"
)

// Authority is the role that decides and records.
type Authority struct {
	closers
	cfg     *config.Config
	env     Env
	started time.Time

	holder    rpc.LogKeys
	facts     rpc.HolderFacts
	log       *audit.Log
	issuers   map[string]*issuer.Issuer
	index     *sqlite.Store
	pipeline  *authority.Pipeline
	status    *status.Service
	operators *operator.Service
	cert      *servercert.Internal // nil: the listeners' certificate is not from here
}

// OpenAuthority opens the log, which feeds the keyholder and the index what they
// have not seen, records the start, and has a certificate for the listeners.
func OpenAuthority(ctx context.Context, cfg *config.Config, env Env, holder rpc.LogKeys) (_ *Authority, err error) {
	a := &Authority{cfg: cfg, env: env.orDefault(), holder: holder}
	a.started = a.env.Now().UTC()
	defer a.failed(ctx, &err)
	if a.facts, err = holder.Facts(ctx); err != nil {
		return nil, fmt.Errorf("asking the keyholder for its keys: %w", err)
	}
	for _, open := range []func(context.Context) error{a.openState, a.openLog, a.openStatus, a.openPipeline, a.start, a.openCertificate} {
		if err := open(ctx); err != nil {
			return nil, err
		}
	}
	a.operators = operator.New(operator.Options{
		Acts: a.pipeline, Index: a.index, Log: a.log, Manifests: a.holder, Status: a.howItIs, Publication: a.publication, Zap: a.env.Zap.Named("operator"),
		Origin: a.cfg.Origin, Rules: a.cfg.Rules, Now: a.env.Now, Scan: scanner(a.cfg),
		From: func(t time.Time) (uint64, error) { return audit.From(auditDir(a.cfg), t) },
		Find: func(ctx context.Context, request string, limit int) ([]audit.Line, error) {
			return audit.Find(ctx, auditDir(a.cfg), request, limit)
		},
	})
	a.background(ctx, "asking the keyholder", a.watchHolder)
	a.background(ctx, "certificates that no validator was told of", a.revokeUntold)
	a.background(ctx, "the lists of what is revoked", a.status.Run)
	return a, nil
}

// Close stops in order, and records the stop.
func (a *Authority) Close(ctx context.Context) error { return a.closers.Close(ctx) }

// Verbs are what the gates may ask for.
func (a *Authority) Verbs() rpc.AuthorityVerbs {
	return rpc.AuthorityVerbs{Devices: a.pipeline, Operate: a.Operate, Chain: a.Chain, Status: a.status}
}

// Operate carries out an operator's call that came over the link of a role.
func (a *Authority) Operate(ctx context.Context, role string, c rpc.Call) (rpc.Answer, error) {
	if role != rpc.RoleOperators {
		return a.operators.RefuseLink(ctx, role, c)
	}
	return a.operators.Operate(ctx, c)
}

// Refuse records what a gate asked for that its link does not have, or in a message
// that could not be read: no gate that is its own does that.
func (a *Authority) Refuse(role string, verb uint8, why error) {
	ctx, cancel := context.WithTimeout(context.Background(), stopWithin)
	defer cancel()
	_, err := a.log.Append(ctx, audit.Entry{Event: "security", Outcome: "alert", Actor: audit.Actor{Kind: "gate", ID: role},
		Object: audit.Object{"what": "a gate asked for what is not its own", "verb": int64(verb), "why": why.Error()}})
	if err != nil {
		a.env.Zap.Error("what a gate asked for could not be recorded", zap.String("role", role), zap.Error(err))
	}
}

// Chain is the listeners' certificate; none where files have it.
func (a *Authority) Chain() [][]byte {
	if a.cert == nil {
		return nil
	}
	c, _ := a.cert.GetCertificate(nil)
	return c.Certificate
}

func (a *Authority) openState(context.Context) error {
	return errors.Join(folder(a.cfg.State), folder(filepath.Join(a.cfg.State, "tls")))
}

// openLog opens the log and what follows it: first the keyholder, then the
// index.
func (a *Authority) openLog(ctx context.Context) error {
	index, err := sqlite.Open(ctx, filepath.Join(a.cfg.State, "index.db"))
	if err != nil {
		return fmt.Errorf("opening the index: %w", err)
	}
	a.index = index
	a.onClose(func(context.Context) error { return index.Close() })
	next, err := index.Next(ctx)
	if err != nil {
		return fmt.Errorf("reading the index: %w", err)
	}
	verifier, err := auditVerifier(a.cfg)
	if err != nil {
		return err
	}
	a.log, err = audit.Open(ctx, audit.Options{
		Dir: auditDir(a.cfg), Origin: a.cfg.Origin, Signer: a.holder, Verifier: verifier, Now: a.env.Now, Boot: a.env.Boot, Genesis: a.genesis,
		CheckpointEvery: a.cfg.CheckpointEvery, Followers: []audit.Follower{a.holder, index}, MinSize: next, Log: a.env.Zap.Named("audit"),
	})
	if err != nil {
		return fmt.Errorf("opening the log: %w", err)
	}
	a.onClose(func(ctx context.Context) error { return a.log.Close(ctx) })
	return nil
}

// openPipeline wires the pipeline, with the keyholder as the only signer.
func (a *Authority) openPipeline(context.Context) error {
	issuers := make(map[string][]authority.CA)
	for _, i := range a.cfg.Issuers {
		is := a.issuers[i.Name]
		g := protocol.Generation{Name: i.Generation, RASign: i.RASign.Raw, RADecrypt: i.RADecrypt.Raw, CA: i.CA.Raw}
		for _, c := range i.Chain {
			g.Chain = append(g.Chain, c.Raw)
		}
		issuers[i.Of] = append(issuers[i.Of], authority.CA{Issuer: is, Generation: g})
	}
	tagger, err := readTagger(a.cfg.ChallengeKeyPath, a.cfg.Challenges.Key.Credential != "")
	if err != nil {
		return err
	}
	o := authority.Options{
		Log: a.log, Index: a.index, Policies: a.cfg.Policies, Tagger: tagger, Issuers: issuers, Now: a.env.Now, Zap: a.env.Zap.Named("authority"),
		Revoked: a.status.Revoked, CRL: a.newestCRL,
	}
	if a.env.Validators != nil {
		o.Validators = asker{a.env.Validators}
	}
	a.pipeline, err = authority.New(o)
	return err
}

// start records the start before the first request can come.
func (a *Authority) start(ctx context.Context) error {
	r := a.log.Recovered()
	begin := authority.Begin{Clean: r.Clean, SameBoot: r.SameBoot, Version: a.env.Version, Config: a.cfg.Digest, Recovered: r.String()}
	if err := a.pipeline.Start(ctx, begin); err != nil {
		return fmt.Errorf("recording the start: %w", err)
	}
	if _, err := a.log.Checkpoint(ctx); err != nil {
		return fmt.Errorf("signing the first checkpoint: %w", err)
	}
	a.onClose(func(ctx context.Context) error { return a.pipeline.Stop(ctx) })
	return nil
}

// openCertificate has the listeners' certificate, where it is of our own CA.
func (a *Authority) openCertificate(ctx context.Context) (err error) {
	if a.cfg.TLS.Mode != "internal" {
		return nil
	}
	log := a.env.Zap.Named("tls")
	key, err := a.listenersKey()
	if err != nil {
		return err
	}
	a.cert, err = servercert.NewInternal(ctx, servercert.InternalOptions{
		Key: publicOnly{key}, Names: a.cfg.TLS.Names, Issue: a.issueServer, File: filepath.Join(a.cfg.State, "tls", "server.pem"), Log: log,
	})
	if err != nil {
		return fmt.Errorf("the listeners' certificate: %w", err)
	}
	a.background(ctx, "the listeners' certificate", func(ctx context.Context) {
		if err := a.cert.Run(ctx); err != nil && ctx.Err() == nil {
			log.Error("renewing the listeners' certificate", zap.Error(err))
		}
	})
	return nil
}

func (a *Authority) issueServer(ctx context.Context, pub crypto.PublicKey, names []string) ([][]byte, error) {
	der, err := a.pipeline.IssueServer(ctx, a.cfg.TLS.Issuer, pub, names, a.cfg.TLSValidity)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	chain := [][]byte{der}
	for _, i := range a.cfg.Issuers { // whichever generation was current; a root is what clients have
		if i.Of == a.cfg.TLS.Issuer && len(i.Chain) > 0 && cert.CheckSignatureFrom(i.CA) == nil {
			chain = append(chain, i.CA.Raw)
		}
	}
	return chain, nil
}

func (a *Authority) publicKey(name string) (crypto.PublicKey, error) {
	for _, k := range a.facts.Keys {
		if k.Name == name {
			return x509.ParsePKIXPublicKey(k.SPKI)
		}
	}
	return nil, fmt.Errorf("the keyholder has no key %s", name)
}

// publicOnly is a key that is used elsewhere.
type publicOnly struct{ pub crypto.PublicKey }

func (p publicOnly) Public() crypto.PublicKey { return p.pub }

func (publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the listeners' key is used by the gates alone")
}

// readTagger reads the key of the challenges' tags: 32 bytes that nobody else may
// read. Who may read a credential is the service manager's business, who may give
// it to the service's user by an access list, which shows as bits of the group.
func readTagger(path string, credential bool) (*challenge.Tagger, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("challenges.key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 && !credential {
		return nil, fmt.Errorf("challenges.key: %s can be read by others: chmod 0600 it", path)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("challenges.key: %w", err)
	}
	defer clear(key)
	t, err := challenge.NewTagger(key)
	if err != nil {
		return nil, fmt.Errorf("challenges.key: %w", err)
	}
	return t, nil
}

func auditVerifier(cfg *config.Config) (note.Verifier, error) {
	pub, ok := cfg.AuditCertificate.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("audit.certificate: its key is not ECDSA")
	}
	return audit.ECDSANoteVerifier(cfg.Origin, pub)
}

// genesis is record 0: who signs the log, and which ceremony made the keys.
func (a *Authority) genesis() (audit.Entry, error) {
	raw, err := os.ReadFile(a.cfg.Transcript)
	if err != nil {
		return audit.Entry{}, fmt.Errorf("transcript: %w", err)
	}
	if _, err := transcript.Closed(raw); err != nil {
		return audit.Entry{}, fmt.Errorf("transcript: the log begins with a ceremony that is closed and whole; postern-ceremony verify %s says what is wrong: %w", a.cfg.Transcript, err)
	}
	sum, cert := sha256.Sum256(raw), a.cfg.AuditCertificate
	keys := audit.Object{}
	for _, k := range a.facts.Keys {
		if k.Purpose == purposeFile {
			continue // not of the ceremony
		}
		id := sha256.Sum256(k.SPKI)
		keys[k.Name] = hex.EncodeToString(id[:])
	}
	e := audit.Entry{Event: "log.genesis", Outcome: "ok", Actor: audit.Actor{Kind: "system", ID: "posternd"}, Object: audit.Object{
		"transcript_sha256": hex.EncodeToString(sum[:]),
		"audit_spki":        base64.StdEncoding.EncodeToString(cert.RawSubjectPublicKeyInfo),
		"audit_certificate": base64.StdEncoding.EncodeToString(cert.Raw),
		"keys":              keys,
	}}
	return e, a.after(e.Object)
}

// after adds what a ceremony left for the first record of a log that is not the
// first one here: what there was before, and why there is a new one.
func (a *Authority) after(ob audit.Object) error {
	after, err := newlog.Read(a.cfg.State)
	if err != nil || after == nil {
		return err
	}
	if origin := after.String("origin"); origin != a.cfg.Origin {
		return fmt.Errorf("%s in %s begins the log %s, and the configuration says origin: %s", newlog.File, a.cfg.State, origin, a.cfg.Origin)
	}
	ob["after"] = after
	return nil
}
