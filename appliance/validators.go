package appliance

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/courier"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/policy/challenge/intune"
	"github.com/postern-pki/postern/policy/challenge/webhook"
)

// asker is the authority's way to the validators: the courier's, by a link.
type asker struct{ v rpc.Validators }

// Ask puts a question to the validator that it names. A courier that is not there
// is a validator that cannot be reached.
func (a asker) Ask(ctx context.Context, q challenge.Question) (challenge.Answer, error) {
	v, err := a.v.Validate(ctx, rpc.Question(q))
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return challenge.AnswerOf(challenge.TimedOut, "courier", err.Error()), nil
		}
		return challenge.AnswerOf(challenge.Unreachable, "courier", err.Error()), nil
	}
	return challenge.AnswerOf(challenge.Verdict(v.Verdict), v.Code, v.Say), nil
}

// untoldEvery is how often certificates are looked for that nobody was told of in time.
const untoldEvery = time.Minute

// revokeUntold revokes what a validator has not heard of for an hour.
func (a *Authority) revokeUntold(ctx context.Context) {
	tick := time.NewTicker(untoldEvery)
	defer tick.Stop()
	for {
		if err := a.pipeline.RevokeUntold(ctx); err != nil && ctx.Err() == nil {
			a.env.Zap.Error("revoking what no validator was told of", zap.Error(err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// answers is the courier's end of the same.
type answers struct{ *courier.Validators }

// Validate implements [rpc.Validators].
func (a answers) Validate(ctx context.Context, q rpc.Question) (rpc.Verdict, error) {
	got, err := a.Ask(ctx, challenge.Question(q))
	return rpc.Verdict{Verdict: string(got.Verdict), Code: got.Code, Say: got.Say}, err
}

// openValidators reads the credentials of the validators, once, and asks nobody yet.
func openValidators(cfg *config.Config, log *zap.Logger) (rpc.Validators, error) {
	if len(cfg.Validators) == 0 {
		return nil, nil
	}
	peers := make(map[string]courier.Peer)
	for _, v := range cfg.Validators {
		open := openWebhook
		if v.Kind == policy.ModeIntune {
			open = openIntune
		}
		p, err := open(v)
		if err != nil {
			return nil, fmt.Errorf("validator %s: %w", v.Name, err)
		}
		peers[v.Name] = p
	}
	return answers{courier.NewValidators(peers, log)}, nil
}

func openWebhook(v config.LoadedValidator) (courier.Peer, error) {
	w := v.Webhook
	text, err := credential("key", v.KeyPath, w.Key)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(string(text.Bytes()))
	if err != nil {
		return nil, errors.New("key: not base64")
	}
	o := webhook.Options{URL: w.URL, ID: w.ID, Key: challenge.NewCredential(key), User: w.User, Timeout: v.Timeout}
	if o.Bearer, err = credential("bearer", v.BearerPath, w.Bearer); err != nil {
		return nil, err
	}
	if o.Password, err = credential("password", v.PasswordPath, w.Password); err != nil {
		return nil, err
	}
	certificate, err := clientCertificate(v.Certificate, v.PrivateKey, w.PrivateKey)
	if err != nil {
		return nil, err
	}
	o.HTTP = courier.Outbound(v.Roots, certificate)
	return webhook.New(o)
}

// caller is how Intune has us in its own log.
const caller = "Postern/1.0"

func openIntune(v config.LoadedValidator) (courier.Peer, error) {
	n := v.Intune
	secret, err := credential("secret", v.SecretPath, n.Secret)
	if err != nil {
		return nil, err
	}
	certificate, err := clientCertificate(v.Certificate, v.PrivateKey, n.PrivateKey)
	if err != nil {
		return nil, err
	}
	roots := v.Roots
	if roots == nil {
		if roots, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("the system's roots: %w", err)
		}
	}
	return intune.New(intune.Options{
		Tenant: n.Tenant, App: n.App, Secret: secret, Certificate: certificate, Caller: caller, Login: n.Login, Graph: n.Graph, Resource: n.Resource,
		Timeout: v.Timeout, HTTP: courier.Outbound(roots, nil),
	})
}

// clientCertificate reads a certificate and its key; nil where none is named.
func clientCertificate(certificate, keyPath string, key config.Secret) (*tls.Certificate, error) {
	if certificate == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(certificate)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	secret, err := credential("private_key", keyPath, key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(pem, secret.Bytes())
	if err != nil {
		return nil, errors.New("certificate: it and private_key are not a pair of PEM files")
	}
	return &pair, nil
}

// maxCredential bounds a file with a credential, in octets.
const maxCredential = 64 << 10

// credential reads a secret, without the line's end that an editor leaves, none where
// path is "". Who may read a systemd credential is the service manager's business.
func credential(what, path string, s config.Secret) (challenge.Credential, error) {
	if path == "" {
		return challenge.Credential{}, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return challenge.Credential{}, fmt.Errorf("%s: %w", what, err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return challenge.Credential{}, fmt.Errorf("%s: %w", what, err)
	}
	if st.Mode().Perm()&0o077 != 0 && s.Credential == "" {
		return challenge.Credential{}, fmt.Errorf("%s: %s can be read by others: chmod 0600 it", what, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	switch {
	case err != nil:
		return challenge.Credential{}, fmt.Errorf("%s: %w", what, err)
	case len(b) > maxCredential:
		return challenge.Credential{}, fmt.Errorf("%s: larger than %d octets", what, maxCredential)
	}
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return challenge.Credential{}, fmt.Errorf("%s: %s is empty", what, path)
	}
	return challenge.NewCredential(b), nil
}
