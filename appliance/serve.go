package appliance

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/gate"
	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/tls/listen"
	"github.com/postern-pki/postern/tls/servercert"
)

// server is what the two kinds of server have in common.
type server interface {
	Serve() error
	Shutdown(ctx context.Context) error
}

// certificate is where the listeners' certificate comes from.
type certificate interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Leaf() *x509.Certificate
	Run(ctx context.Context) error
}

// openCertificate has the listeners' certificate ready before they listen.
func (a *Appliance) openCertificate(ctx context.Context) error {
	var err error
	log := a.env.Zap.Named("tls")
	switch c := a.cfg.TLS; c.Mode {
	case "files":
		a.cert, err = servercert.NewFiles(servercert.FilesOptions{Certificate: c.Certificate, Key: c.PrivateKey, Log: log})
	default:
		a.cert, err = servercert.NewInternal(ctx, servercert.InternalOptions{
			Key: a.keys[c.Key], Names: c.Names, Issue: a.issueServer, File: filepath.Join(a.cfg.State, "tls", "server.pem"), Log: log,
		})
	}
	if err != nil {
		return fmt.Errorf("the listeners' certificate: %w", err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := a.cert.Run(run); err != nil && run.Err() == nil {
			log.Error("renewing the listeners' certificate", zap.Error(err))
		}
	}()
	a.onClose(func(ctx context.Context) error {
		stop()
		select {
		case <-done:
			return nil
		case <-ctx.Done(): // a certificate is being issued, and the disk does not answer
			return fmt.Errorf("the listeners' certificate: %w", ctx.Err())
		}
	})
	return nil
}

func (a *Appliance) issueServer(ctx context.Context, pub crypto.PublicKey, names []string) ([][]byte, error) {
	der, err := a.authority.IssueServer(ctx, a.cfg.TLS.Issuer, pub, names, a.cfg.TLSValidity)
	if err != nil {
		return nil, err
	}
	chain := [][]byte{der}
	for _, i := range a.cfg.Issuers {
		if i.Name == a.cfg.TLS.Issuer && len(i.Chain) > 0 { // a root is what clients have
			chain = append(chain, i.CA.Raw)
		}
	}
	return chain, nil
}

// openListeners is the last step: nothing is served by half.
func (a *Appliance) openListeners(context.Context) error {
	d := a.cfg.Devices
	devices, err := listen.New(listen.Options{
		Name: "devices", Listener: a.env.Devices, Address: unlessInherited(a.env.Devices, d.Listen), GetCertificate: a.cert.GetCertificate,
		Handler:        gate.Devices(a.authority, raKeys{a}, a.env.Now, a.env.Zap.Named("scep")),
		ConnsPerSource: d.ConnsPerSource, MaxConns: d.MaxConns, Log: a.env.Zap.Named("devices"),
	})
	if err != nil {
		return fmt.Errorf("the devices' listener: %w", err)
	}
	a.device = devices.Addr()
	a.serve(devices)
	if err := os.MkdirAll(filepath.Dir(a.cfg.Operators.Socket), 0o700); err != nil {
		return fmt.Errorf("the operators' socket: %w", err)
	}
	local, err := listen.NewLocal(a.cfg.Operators.Socket, 0o660, a.api(a.localActor), a.env.Zap.Named("local"))
	if err != nil {
		return fmt.Errorf("the operators' socket: %w", err)
	}
	a.serve(local)
	if a.cfg.Operators.Listen == "" && a.env.Operators == nil {
		return nil
	}
	if a.cfg.OperatorCA == nil {
		return errors.New("the operators' listener: its socket was inherited, but the configuration names no operators.ca: nobody could be told from a stranger")
	}
	operators, err := listen.New(listen.Options{
		Name: "operators", Listener: a.env.Operators, Address: unlessInherited(a.env.Operators, a.cfg.Operators.Listen), GetCertificate: a.cert.GetCertificate,
		ClientCAs: a.cfg.OperatorCA, Handler: a.api(gate.CertificateActor), Log: a.env.Zap.Named("operators"),
	})
	if err != nil {
		return fmt.Errorf("the operators' listener: %w", err)
	}
	a.operator = operators.Addr()
	a.serve(operators)
	return nil
}

// unlessInherited is the address to listen on: none where the service manager has
// opened the socket, whatever the configuration says.
func unlessInherited(l net.Listener, address string) string {
	if l != nil {
		return ""
	}
	return address
}

// drainWithin bounds how long each listener waits for its requests at a stop. What
// is left of the time is the log's: a stop that it does not know of makes every
// open challenge void after the machine was started.
const drainWithin = 3 * time.Second

func (a *Appliance) serve(s server) {
	a.servers = append(a.servers, s)
	a.onClose(func(ctx context.Context) error {
		within, cancel := context.WithTimeout(ctx, drainWithin)
		defer cancel()
		err := s.Shutdown(within)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			a.env.Zap.Warn("requests were cut off by the stop", zap.Error(err))
			return nil
		}
		return err
	})
}

// operators is the authority's side of the operators' API.
func (a *Appliance) operators() *operator.Service {
	return operator.New(operator.Options{
		Acts: a.authority, Index: a.index, Log: a.log, Status: a.status, Zap: a.env.Zap.Named("operator"),
		Scan: func(from uint64, fn func(audit.Line) error) error { return audit.Scan(a.auditDir(), from, fn) },
		Find: func(ctx context.Context, request string, limit int) ([]audit.Line, error) {
			return audit.Find(ctx, a.auditDir(), request, limit)
		},
	})
}

func (a *Appliance) api(actor func(*http.Request) (rpc.Actor, bool)) http.Handler {
	return gate.Operators(a.operators(), actor, a.env.Zap.Named("operators"))
}

// localActor lets root, the service's own user, and those in that the
// configuration names.
func (a *Appliance) localActor(r *http.Request) (rpc.Actor, bool) {
	who, ok := gate.LocalActor(r)
	return who, ok && (who.ID == "uid:0" || who.ID == "uid:"+strconv.Itoa(os.Geteuid()) ||
		slices.ContainsFunc(a.cfg.Operators.UIDs, func(uid int) bool { return who.ID == "uid:"+strconv.Itoa(uid) }))
}

// raKeys gives the gate the two RA keys of a profile's issuer.
type raKeys struct{ a *Appliance }

func (k raKeys) keys(profile string) (sign, decrypt *hsm.Key, err error) {
	p, ok := k.a.cfg.Policies.Profile(profile)
	if !ok {
		return nil, nil, protocol.ErrUnknownProfile
	}
	for _, i := range k.a.cfg.Issuers {
		if i.Name == p.Issuer {
			return k.a.keys[i.Issuer.RASign.Key], k.a.keys[i.Issuer.RADecrypt.Key], nil
		}
	}
	return nil, nil, protocol.ErrUnknownProfile
}

// Decrypter implements [protocol.Keys].
func (k raKeys) Decrypter(ctx context.Context, profile string) (crypto.Decrypter, error) {
	_, decrypt, err := k.keys(profile)
	if err != nil {
		return nil, err
	}
	return decrypt.With(ctx), nil
}

// Signer implements [protocol.Keys].
func (k raKeys) Signer(ctx context.Context, profile string) (crypto.Signer, error) {
	sign, _, err := k.keys(profile)
	if err != nil {
		return nil, err
	}
	return sign.With(ctx), nil
}

// status is how the appliance is, with every reason why it is not good.
func (a *Appliance) status(context.Context) operator.Status {
	head, slot, stats := a.log.Head(), a.token.Slot(), a.token.Stats()
	s := operator.Status{
		State: operator.Good, Reasons: []string{}, Version: a.env.Version, Started: a.started, Policy: a.cfg.Policies.Digest(),
		Log:   operator.StatusLog{Origin: a.cfg.Origin, Size: head.Size, Root: hex.EncodeToString(head.Root[:])},
		Token: operator.StatusToken{Serial: slot.Serial, Label: slot.Label, Operations: stats.Sign + stats.Decrypt, Failures: stats.Dropped + stats.Overdue + stats.OwnSignature},
	}
	degraded := func(why string) { s.State, s.Reasons = operator.Degraded, append(s.Reasons, why) }
	if err := a.log.Healthy(); err != nil {
		degraded(noLog(err))
	}
	if err := a.index.Healthy(); err != nil {
		degraded("the index, and nothing is issued until the service is started again: " + err.Error())
	}
	if err := a.token.Healthy(); err != nil {
		degraded("the token: " + err.Error())
	}
	expiry := func(name string, c *x509.Certificate) {
		sum := sha256.Sum256(c.Raw)
		s.Expiries = append(s.Expiries, operator.StatusExpiry{Name: name, NotAfter: c.NotAfter, SHA256: hex.EncodeToString(sum[:])})
		if left := c.NotAfter.Sub(a.env.Now()); left < 14*24*time.Hour {
			degraded(fmt.Sprintf("the %s certificate ends on %s", name, c.NotAfter.Format(time.DateOnly)))
		}
	}
	for _, i := range a.cfg.Issuers {
		expiry(i.Name+" ca", i.CA)
		expiry(i.Name+" ra-sign", i.RASign)
		expiry(i.Name+" ra-decrypt", i.RADecrypt)
	}
	expiry("audit", a.cfg.AuditCertificate)
	expiry("tls", a.cert.Leaf())
	for _, name := range a.cfg.Policies.Names() {
		s.Profiles = append(s.Profiles, operator.StatusProfile{Name: name, URL: a.DeviceURL(name)})
	}
	return s
}

// noLog says what a log that failed asks of a person.
func noLog(err error) string {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return "the disk is full: make room, then start the service again; until then nothing is issued: " + err.Error()
	}
	return "the log cannot be written, and nothing is issued until the service is started again: " + err.Error()
}

// DeviceURL is what the devices of a profile are told.
func (a *Appliance) DeviceURL(profile string) string {
	base := a.cfg.Devices.URL
	if base == "" {
		base = "https://" + a.device.String()
	}
	return base + "/scep/" + profile
}

// begin says how the log was found.
func (a *Appliance) begin() authority.Begin {
	r := a.log.Recovered()
	return authority.Begin{Clean: r.Clean, SameBoot: r.SameBoot, Version: a.env.Version, Config: a.cfg.Digest, Recovered: r.String()}
}
