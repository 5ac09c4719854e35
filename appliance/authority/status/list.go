package status

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
	"github.com/postern-pki/postern/protocol/status"
)

// Times of lists.
const (
	signWithin = 15 * time.Second // a list to be recorded and signed
	apart      = time.Second      // from one list to the next, whatever is revoked
	firstTry   = 2 * time.Second  // after a list that could not be signed, then twice as long
	lastTry    = time.Minute
)

// Run signs lists when they are due, and records what was asked, until ctx ends.
func (s *Service) Run(ctx context.Context) {
	var wait sync.WaitGroup
	for _, n := range s.issuers {
		wait.Go(func() { s.runOne(ctx, n) })
	}
	s.runCounts(ctx)
	wait.Wait()
}

func (s *Service) runOne(ctx context.Context, n *one) {
	again := firstTry
	for first := true; ; first = false {
		due := s.due(n)
		if first && s.stale(ctx, n) {
			due = 0
		}
		select {
		case <-time.After(due):
		case <-n.wake:
		case <-ctx.Done():
			return
		}
		if !s.pause(ctx, n) {
			return
		}
		for err := s.Sign(ctx, n.Issuer.Issuer.Name()); err != nil; err = s.Sign(ctx, n.Issuer.Issuer.Name()) {
			s.o.Zap.Error("a CRL could not be signed", zap.String("issuer", n.Issuer.Issuer.Name()), zap.Error(err))
			select {
			case <-time.After(again):
			case <-ctx.Done():
				return
			}
			again = min(2*again, lastTry)
		}
		again = firstTry
	}
}

// pause keeps lists apart; what is revoked meanwhile is in the next one.
func (s *Service) pause(ctx context.Context, n *one) bool {
	n.mu.Lock()
	left := apart - s.o.Now().Sub(n.last)
	n.mu.Unlock()
	if left <= 0 || left > apart {
		return true
	}
	select {
	case <-time.After(left):
		return true
	case <-ctx.Done():
		return false
	}
}

// due is how long the list there is will do.
func (s *Service) due(n *one) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.list.DER == nil {
		return 0
	}
	age := s.o.Now().Sub(n.list.ThisUpdate)
	if age < 0 { // the clock was set back
		return 0
	}
	return max(n.Every-age, 0)
}

// stale reports whether the list on disk has to be replaced at once: it is older than
// half its life, or the index knows of another one or of other revocations.
func (s *Service) stale(ctx context.Context, n *one) bool {
	n.mu.Lock()
	l := n.list
	n.mu.Unlock()
	if l.DER == nil || s.o.Now().After(l.ThisUpdate.Add(l.NextUpdate.Sub(l.ThisUpdate)/2)) {
		return true
	}
	last, err := s.o.Index.CRL(ctx, n.Issuer.Issuer.Name())
	if err != nil || last.Number != l.Number || !last.Issued {
		return true
	}
	crl, err := x509.ParseRevocationList(l.DER)
	if err != nil {
		return true
	}
	var listed []string
	for _, e := range crl.RevokedCertificateEntries {
		listed = append(listed, hex.EncodeToString(e.SerialNumber.Bytes()))
	}
	now, err := s.entries(ctx, n, s.o.Now())
	return err != nil || !slices.EqualFunc(listed, now, func(a string, b issuer.Revoked) bool { return a == b.Serial })
}

// entries are what a list of this moment names. A certificate that has ended stays for
// as long as a list is good, so that at least one names it after its end (RFC 5280,
// section 3.3).
func (s *Service) entries(ctx context.Context, n *one, now time.Time) ([]issuer.Revoked, error) {
	all, err := s.o.Index.Revocations(ctx, n.Issuer.Issuer.Name(), now.Add(-n.Validity))
	if err != nil {
		return nil, err
	}
	out := make([]issuer.Revoked, len(all))
	for i, r := range all {
		out[i] = issuer.Revoked{Serial: r.Serial, Reason: r.Reason, At: r.At}
	}
	return out, nil
}

// Sign has a new list signed: its intent is durable, then it is signed, then its
// result is durable, then it is served.
func (s *Service) Sign(ctx context.Context, name string) (err error) {
	n, ok := s.issuers[name]
	if !ok {
		return status.ErrUnknownIssuer
	}
	// What is begun is finished, also at a stop.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), signWithin)
	defer cancel()
	n.mu.Lock()
	n.last = s.o.Now()
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.trouble = ""; err != nil {
			n.trouble = err.Error()
		}
	}()
	list, tbs, intent, err := s.prepare(ctx, n)
	if err != nil {
		return err
	}
	line, err := s.record(ctx, store.OutIntent, store.CRLObject(intent, list))
	if err != nil {
		return fmt.Errorf("status: recording the intent of a CRL: %w", err)
	}
	der, err := n.Issuer.Issuer.SignCRL(ctx, s.o.Signer, tbs, line.Record.Seq)
	if err != nil {
		o := store.CRLResultObject(line.Record.Seq, intent, "")
		o["why"] = err.Error()[:min(len(err.Error()), 256)]
		_, rerr := s.record(ctx, store.OutFailed, o)
		return errors.Join(err, rerr)
	}
	sum := sha256.Sum256(der)
	if _, err := s.record(ctx, store.OutIssued, store.CRLResultObject(line.Record.Seq, intent, hex.EncodeToString(sum[:]))); err != nil {
		return fmt.Errorf("status: recording a CRL: %w", err)
	}
	if err := replace(s.path(name), der); err != nil { // the next start signs another one
		s.o.Zap.Error("a CRL could not be kept", zap.String("issuer", name), zap.Error(err))
	}
	n.serve(status.List{Answer: status.Answer{DER: der, ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate}, Number: list.Number})
	return nil
}

func (n *one) serve(l status.List) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list, n.digest = l, l.Digest()
}

// prepare makes the octets of a list. Its number is the one after the last in the log;
// the first of a log is the time in seconds, so that a log that begins anew goes on
// above the numbers of the one before.
func (s *Service) prepare(ctx context.Context, n *one) (list store.CRL, tbs []byte, in audit.CRLIntent, err error) {
	name, now := n.Issuer.Issuer.Name(), s.o.Now().UTC().Truncate(time.Second)
	last, err := s.o.Index.CRL(ctx, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return list, nil, in, fmt.Errorf("status: %w", err)
	}
	list = store.CRL{Issuer: name, Number: last.Number + 1, ThisUpdate: now, NextUpdate: now.Add(n.Validity)}
	if last.Number == 0 {
		list.Number = uint64(max(now.Unix(), 1))
	}
	entries, err := s.entries(ctx, n, now)
	if err != nil {
		return list, nil, in, fmt.Errorf("status: %w", err)
	}
	list.Entries = int64(len(entries))
	tbs, in, err = n.Issuer.Issuer.TBSCertList(issuer.CRL{Number: list.Number, ThisUpdate: now, NextUpdate: list.NextUpdate, Entries: entries})
	return list, tbs, in, err
}

func (s *Service) record(ctx context.Context, out string, o audit.Object) (audit.Line, error) {
	return s.o.Log.Append(ctx, audit.Entry{Event: store.EventCRL, Outcome: out, Actor: audit.Actor{Kind: "system", ID: "posternd"}, Object: o})
}

func (s *Service) path(name string) string { return filepath.Join(s.o.Dir, name+".crl") }

// read takes the list on disk, if it is one of the issuer's. It is served until there
// is another: whether it is the newest is looked at then.
func (s *Service) read(n *one) {
	der, err := os.ReadFile(s.path(n.Issuer.Issuer.Name()))
	if err != nil || len(der) > issuer.MaxCRL+1<<10 {
		return
	}
	crl, err := x509.ParseRevocationList(der)
	if err != nil || crl.CheckSignatureFrom(n.ca) != nil || crl.Number == nil || !crl.Number.IsUint64() {
		s.o.Zap.Warn("the CRL on disk is not one of the issuer's: another one is signed", zap.String("issuer", n.Issuer.Issuer.Name()))
		return
	}
	n.serve(status.List{Answer: status.Answer{DER: der, ThisUpdate: crl.ThisUpdate, NextUpdate: crl.NextUpdate}, Number: crl.Number.Uint64()})
}

// replace puts a file in the place of another, whole or not at all.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
