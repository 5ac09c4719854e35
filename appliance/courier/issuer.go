package courier

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// issuer is what certmagic has certificates from: an ACME client of its own, as
// certmagic's opens a listener to answer challenges, and asks for one name a
// certificate. certmagic makes the keys, keeps the files and locks the folder.
type issuer struct {
	options Options
	key     string // names the directory in the folder
	solver  *solver
	client  *acmez.Client
	config  *certmagic.Config
	cache   *certmagic.Cache
	storage *certmagic.FileStorage
	closed  sync.Once

	mu   sync.Mutex
	made *ecdsa.PrivateKey // the key that certmagic asks a certificate for
}

func newIssuer(o Options) (*issuer, error) {
	u, err := url.Parse(o.Directory)
	switch {
	case err != nil || u.Host == "":
		return nil, fmt.Errorf("%w: the directory is no URL", ErrOptions)
	case u.Scheme != "https":
		return nil, fmt.Errorf("%w: %s", ErrNotHTTPS, o.Directory)
	}
	log := o.Log.Named("certmagic")
	i := &issuer{
		options: o, key: u.Host + "-" + strings.ReplaceAll(strings.Trim(u.Path, "/"), "/", "-"),
		solver: newSolver(), storage: &certmagic.FileStorage{Path: o.Dir},
	}
	i.client = &acmez.Client{
		Client:           &acme.Client{Directory: o.Directory, HTTPClient: httpsOnly(o.Roots), UserAgent: "Postern", PollTimeout: obtainWithin},
		ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeTLSALPN01: i.solver},
	}
	// Whatever is not set here would be taken from certmagic's package variables,
	// which mean the public CAs.
	i.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return i.config, nil }, Logger: log,
	})
	i.config = certmagic.New(i.cache, certmagic.Config{
		Issuers: []certmagic.Issuer{i}, KeySource: i, Storage: i.storage, Logger: log,
		OCSP: certmagic.OCSPConfig{DisableStapling: true}, DisableARI: true, RenewalWindowRatio: 1.0 / 3,
	})
	return i, nil
}

func (i *issuer) close() { i.closed.Do(i.cache.Stop) }

// IssuerKey implements [certmagic.Issuer].
func (i *issuer) IssuerKey() string { return i.key }

// GenerateKey implements [certmagic.KeyGenerator]. The key is remembered for
// Issue: certmagic's request has one name, and ours has all of them.
func (i *issuer) GenerateKey() (crypto.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.made = k
	return k, nil
}

// Issue implements [certmagic.Issuer].
func (i *issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	i.mu.Lock()
	key := i.made
	i.mu.Unlock()
	if key == nil || !key.PublicKey.Equal(csr.PublicKey) {
		return nil, fmt.Errorf("%w: a certificate was asked for a key that was not made here", ErrUnfit)
	}
	all, err := acmez.NewCSR(key, i.options.Names)
	if err != nil {
		return nil, err
	}
	account, err := i.account(ctx)
	if err != nil {
		return nil, err
	}
	order, err := acmez.OrderParametersFromCSR(account, all)
	if err != nil {
		return nil, err
	}
	chains, err := i.client.ObtainCertificate(ctx, order)
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, fmt.Errorf("%w: the directory gave none", ErrUnfit)
	}
	if _, err := i.fit(chains[0].ChainPEM, key); err != nil {
		return nil, err
	}
	return &certmagic.IssuedCertificate{Certificate: chains[0].ChainPEM, Metadata: chains[0].URL}, nil
}

// account registers the account, or finds the one that its key has already (RFC
// 8555, section 7.3.1): a directory that was set up anew gets a new one.
func (i *issuer) account(ctx context.Context) (acme.Account, error) {
	name := path.Join("acme", certmagic.StorageKeys.Safe(i.key), "account.key")
	var key crypto.Signer
	switch b, err := i.storage.Load(ctx, name); {
	case err == nil:
		if key, err = certmagic.PEMDecodePrivateKey(b); err != nil {
			return acme.Account{}, fmt.Errorf("the account's key: %w", err)
		}
	case errors.Is(err, fs.ErrNotExist):
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return acme.Account{}, err
		}
		b, err := certmagic.PEMEncodePrivateKey(k)
		if err != nil {
			return acme.Account{}, err
		}
		if err := i.storage.Store(ctx, name, b); err != nil {
			return acme.Account{}, fmt.Errorf("the account's key: %w", err)
		}
		key = k
	default:
		return acme.Account{}, fmt.Errorf("the account's key: %w", err)
	}
	a := acme.Account{PrivateKey: key, TermsOfServiceAgreed: true}
	if i.options.Email != "" {
		a.Contact = []string{"mailto:" + i.options.Email}
	}
	return i.client.NewAccount(ctx, a)
}

// obtain has certmagic make a key and have a certificate for it. A kept pair that
// cannot be used is out of the way first, as certmagic would find it good.
func (i *issuer) obtain(ctx context.Context, renew bool) error {
	name := i.options.Names[0]
	if renew {
		return i.config.RenewCertSync(ctx, name, true)
	}
	if err := i.storage.Delete(ctx, certmagic.StorageKeys.CertsSitePrefix(i.key, name)); err != nil {
		return err
	}
	return i.config.ObtainCertSync(ctx, name)
}

// kept reads the certificate in the folder. One that is expired, or that is not
// for all the names, is none.
func (i *issuer) kept() (*pair, error) {
	ctx, name := context.Background(), i.options.Names[0] // files: no call here takes long or looks at it
	cert, err := i.storage.Load(ctx, certmagic.StorageKeys.SiteCert(i.key, name))
	if err != nil {
		return nil, fmt.Errorf("courier: %w", err)
	}
	b, err := i.storage.Load(ctx, certmagic.StorageKeys.SitePrivateKey(i.key, name))
	if err != nil {
		return nil, fmt.Errorf("courier: %w", err)
	}
	key, err := certmagic.PEMDecodePrivateKey(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	return i.fit(cert, key)
}

// Bounds on a chain: each handshake sends all of it.
const (
	maxChain      = 8
	maxChainBytes = 32 << 10
)

// fit checks a chain against its key, the names and the time.
func (i *issuer) fit(chain []byte, key crypto.Signer) (*pair, error) {
	p := &pair{}
	if len(chain) > maxChainBytes {
		return nil, fmt.Errorf("%w: the chain has %d bytes of PEM, %d at most are served", ErrUnfit, len(chain), maxChainBytes)
	}
	for {
		var block *pem.Block
		if block, chain = pem.Decode(chain); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnfit, err)
		}
		if p.chain = append(p.chain, c.Raw); p.leaf == nil {
			p.leaf = c
		}
	}
	if p.leaf == nil || len(p.chain) > maxChain {
		return nil, fmt.Errorf("%w: the chain has %d certificates, wants 1 to %d", ErrUnfit, len(p.chain), maxChain)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(p.leaf.PublicKey) {
		return nil, fmt.Errorf("%w: it is for another key", ErrUnfit)
	}
	if now := time.Now(); now.After(p.leaf.NotAfter) {
		return nil, fmt.Errorf("%w: it ended on %s", ErrUnfit, p.leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	for _, n := range i.options.Names {
		if err := p.leaf.VerifyHostname(bracketed(n)); err != nil {
			return nil, fmt.Errorf("%w: it is not for %s", ErrUnfit, n)
		}
	}
	var err error
	p.key, err = pkcs8(key)
	return p, err
}

// bracketed is a name as [x509.Certificate.VerifyHostname] tells addresses.
func bracketed(name string) string {
	if net.ParseIP(name) != nil {
		return "[" + name + "]"
	}
	return name
}

var (
	_ certmagic.Issuer       = (*issuer)(nil)
	_ certmagic.KeyGenerator = (*issuer)(nil)
)
