package device

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// stateFile is what a folder has while its request is pending.
const stateFile = "request.json"

// Bounds on what is read back, and on how often a server is asked.
const (
	maxState = 1 << 20
	minEvery = time.Second
)

// state is what it takes to ask again. It holds no secret: the keys are in files
// of their own.
type state struct {
	Version     int      `json:"version"`
	Server      server   `json:"server"`
	Transaction string   `json:"transaction"`
	Subject     string   `json:"subject"`    // base64 of the DER of a Name
	Signer      string   `json:"signer"`     // base64 of the DER of the request's signer
	SignerKey   string   `json:"signer_key"` // path, of the folder if it is relative
	Nonces      []string `json:"nonces"`     // hex; the server's, so that none is taken twice
}

// A folder has the files of one request.
type folder struct {
	dir       string
	server    server
	signerKey string
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

// keep writes the state, whole or not at all.
func (f folder) keep(p *client.Pending, nonces [][]byte) error {
	s := state{
		Version: 1, Server: f.server.absolute(), Transaction: p.TransactionID, SignerKey: f.signerKey,
		Subject: base64.StdEncoding.EncodeToString(p.Subject), Signer: base64.StdEncoding.EncodeToString(p.Signer),
	}
	for _, n := range nonces {
		s.Nonces = append(s.Nonces, hex.EncodeToString(n))
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(f.dir, ".request-")
	if err != nil {
		return cli.Failed("may you write into that folder?", "keeping the request: %w", err)
	}
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), f.path(stateFile))
	}
	if err != nil {
		return errors.Join(cli.Failed("is there room on the disk?", "keeping the request: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

// absolute lets the state be used from another working folder.
func (s server) absolute() server {
	for _, p := range []*string{&s.TLSCA, &s.CACerts} {
		if abs, err := filepath.Abs(*p); *p != "" && err == nil {
			*p = abs
		}
	}
	return s
}

// done removes the state of a request that was answered.
func (f folder) done() error {
	if err := os.Remove(f.path(stateFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// readFolder reads back what keep wrote.
func readFolder(dir string) (folder, *client.Pending, [][]byte, error) {
	f := folder{dir: dir}
	in, err := os.Open(f.path(stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return f, nil, nil, cli.Failed("--out names the folder of an enroll or renew that said pending", "no request is pending in %s", dir)
	}
	if err != nil {
		return f, nil, nil, cli.Failed("", "%w", err)
	}
	defer func() { _ = in.Close() }()
	data, err := io.ReadAll(io.LimitReader(in, maxState))
	if err != nil {
		return f, nil, nil, cli.Failed("", "%w", err)
	}
	p, nonces, err := f.parse(data)
	if err != nil {
		return f, nil, nil, cli.Failed("enroll again; --key "+f.path(keyFile)+" keeps the key", "%s: %w", f.path(stateFile), err)
	}
	return f, p, nonces, nil
}

func (f *folder) parse(data []byte) (*client.Pending, [][]byte, error) {
	var s state
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return nil, nil, err
	}
	if s.Version != 1 {
		return nil, nil, errors.New("it is of another version")
	}
	f.server, f.signerKey = s.Server, s.SignerKey
	p := &client.Pending{TransactionID: s.Transaction}
	var err error
	if p.Subject, err = base64.StdEncoding.DecodeString(s.Subject); err != nil {
		return nil, nil, err
	}
	if p.Signer, err = base64.StdEncoding.DecodeString(s.Signer); err != nil {
		return nil, nil, err
	}
	var nonces [][]byte
	for _, n := range s.Nonces {
		b, err := hex.DecodeString(n)
		if err != nil {
			return nil, nil, err
		}
		nonces = append(nonces, b)
	}
	key, err := readKey(f.path(keyFile))
	if err != nil {
		return nil, nil, err
	}
	if p.PublicKey, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
		return nil, nil, err
	}
	path := s.SignerKey
	if !filepath.IsAbs(path) {
		path = f.path(path)
	}
	p.SignerKey, err = readKey(path)
	return p, nonces, err
}

// waiting says how long to go on asking.
type waiting struct{ limit, every time.Duration }

func (w *waiting) flags(c *cobra.Command) {
	c.Flags().DurationVar(&w.limit, "wait", 0, "`time` to go on asking while it is pending")
	c.Flags().DurationVar(&w.every, "every", time.Minute, "`time` between two questions")
}

func (w *waiting) check() error {
	if w.every < minEvery || w.limit < 0 {
		return cli.Misused("--wait 30m --every 1m", "a server is asked once a second at most")
	}
	return nil
}

// wait polls until there is an answer or the time is over. A server that is away
// for a while is asked again.
func (w *waiting) wait(ctx context.Context, cl *client.Client, f folder, p *client.PendingError) (*client.Result, error) {
	var err error = p
	for end := time.Now().Add(w.limit); !time.Now().Add(w.every).After(end); {
		timer := time.NewTimer(w.every)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-timer.C:
		}
		var r *client.Result
		r, err = f.poll(ctx, cl, p.Pending)
		if _, still := errors.AsType[*client.PendingError](err); !still && !away(err) {
			return r, err
		}
	}
	if away(err) {
		return nil, cli.Failed("postern scep poll --out "+f.dir, "%w", err)
	}
	return nil, err
}

// poll asks once, and keeps the nonce of the answer.
func (f folder) poll(ctx context.Context, cl *client.Client, p *client.Pending) (*client.Result, error) {
	r, err := cl.Poll(ctx, p)
	if _, still := errors.AsType[*client.PendingError](err); still {
		if err := f.keep(p, cl.Nonces().All()); err != nil {
			return nil, err
		}
	}
	return r, err
}

// away reports whether an error says only that the server did not answer: not what
// it said, or that it was somebody else.
func away(err error) bool {
	if e, ok := errors.AsType[*client.StatusError](err); ok {
		return e.Code >= 500 || e.Code == 429
	}
	if _, ok := errors.AsType[*client.FailError](err); ok || err == nil {
		return false
	}
	if _, ok := errors.AsType[*cli.Error](err); ok {
		return false
	}
	for _, final := range []error{client.ErrFingerprint, client.ErrCA, client.ErrReply, client.ErrCertificate, client.ErrRequest, client.ErrTransport} {
		if errors.Is(err, final) {
			return false
		}
	}
	_, pending := errors.AsType[*client.PendingError](err)
	return !pending
}

func (e commands) poll() *cobra.Command {
	w := &waiting{}
	var dir string
	c := &cobra.Command{
		Use: "poll --out DIR", Short: "Ask what became of a request that is pending", Args: cobra.NoArgs,
		Long: "Ask what became of a request that is pending, in the folder that enroll or renew made, with the server and\nthe options that it was made with." + waits,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return cli.Misused("--out DIR", "the folder of the request is needed")
			}
			if err := w.check(); err != nil {
				return err
			}
			f, p, nonces, err := readFolder(dir)
			if err != nil {
				return err
			}
			cl, err := f.server.client(true)
			if err != nil {
				return err
			}
			for _, n := range nonces {
				cl.Nonces().Add(n)
			}
			r, err := f.poll(cmd.Context(), cl, p)
			if err != nil && away(err) && w.limit == 0 {
				return cli.Failed(serverHint(err), "%w", err)
			}
			if away(err) {
				err = &client.PendingError{TransactionID: p.TransactionID, Pending: p}
			}
			return e.answered(cmd.Context(), cl, w, f, r, err)
		},
	}
	c.Flags().StringVar(&dir, "out", "", "`folder` of the request; the certificate comes there too")
	w.flags(c)
	return c
}
