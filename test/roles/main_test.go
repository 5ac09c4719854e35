// Package roles_test has a role lie to another over its link, and looks at what the
// other does, and at what the log says then.
//
// # What a caller may rely on
//
// The role that is lied to is the real one, with its own link: the keyholder on a
// SoftHSM token that a ceremony made, the authority with its log on disk.
//
// # What it does not protect against
//
// The roles of most tests share this process, so what their sandboxes hold is tried
// by the tests that start them as processes.
package roles_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// profiles allow one subject many certificates and one key many subjects.
var profiles = strings.NewReplacer("reuse: same-subject", "reuse: any", "active_per_subject: 10", "active_per_subject: 1000000").Replace(site.Profiles)

// bin is the folder of the binaries, which TestMain sets.
var bin string

func TestMain(m *testing.M) {
	if role := os.Getenv(insideVar); role != "" {
		os.Exit(inside(role))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var end func()
	var err error
	if bin, end, err = site.Build(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer end()
	return m.Run()
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func no(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newSite makes a site that nothing runs on yet. change, if not nil, is made to its
// configuration.
func newSite(t *testing.T, change func(string) string) *site.Site {
	t.Helper()
	s, end, err := site.New(t.Context(), bin, profiles)
	no(t, err)
	t.Cleanup(end)
	if change != nil {
		text := string(must(os.ReadFile(s.Config()))(t))
		no(t, os.WriteFile(s.Config(), []byte(change(text)), 0o600))
	}
	return s
}

// A house is a site whose roles are opened here.
type house struct {
	t      *testing.T
	s      *site.Site
	cfg    *config.Config
	keys   *appliance.Keyholder
	ahead  atomic.Int64 // nanoseconds by which the keyholder's clock is ahead
	wanted []string     // what the log has to tell at the end
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{t: t, s: newSite(t, func(text string) string { return text + "\nkeyholder: {max_per_second: 4}\n" })}
	h.cfg = must(config.Load(h.s.Config()))(t)
	t.Setenv("SOFTHSM2_CONF", h.cfg.SoftHSM2Conf)
	h.keys = must(appliance.OpenKeyholder(t.Context(), h.cfg, appliance.Env{Version: "test", Now: func() time.Time { return time.Now().Add(time.Duration(h.ahead.Load())) }}))(t)
	t.Cleanup(func() { no(t, h.keys.Close(context.Background())) })
	return h
}

func hello(role string) link.Hello { return link.Hello{Role: role, Build: "test", Config: "test"} }

// A joint makes links to a server: each is a pair of connected sockets.
type joint struct {
	s    *link.Server
	role string
}

func (j joint) Dial(context.Context) (net.Conn, error) {
	a, b, err := link.Pair(syscall.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = a.Close(), b.Close() }()
	near, err := net.FileConn(a)
	if err != nil {
		return nil, err
	}
	far, err := net.FileConn(b)
	if err != nil {
		return nil, err
	}
	go func() { _ = j.s.Serve(context.Background(), far, j.role) }() // ends with the other end
	return near, nil
}

// toKeyholder is a link of a role to the keyholder. Each has a server of its own:
// the newest link of a role would be the only one otherwise.
func (h *house) toKeyholder(role string) link.ClientOptions {
	s := link.NewServer(link.ServerOptions{Self: hello(rpc.RoleKeyholder), Verbs: rpc.KeyholderTable(h.keys, h.keys),
		Refused: func(role string, v link.Verb, why error) { h.keys.Refuse(role, uint8(v), why) }})
	return link.ClientOptions{Self: hello(role), Role: rpc.RoleKeyholder, Dial: joint{s, role}}
}

// holder is an authority's view of the keyholder.
func (h *house) holder() *rpc.Holder {
	h.t.Helper()
	k := rpc.NewHolder(rpc.HolderOptions{Link: h.toKeyholder(rpc.RoleAuthority), Scan: func(from uint64, fn func(audit.Line) error) error { return audit.Scan(h.log(), from, fn) }})
	h.t.Cleanup(func() { _ = k.Close() })
	no(h.t, k.Ready(h.within()))
	return k
}

func (h *house) within() context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *house) log() string { return filepath.Join(h.cfg.State, "audit") }

// verifier is that of the log's checkpoints.
func (h *house) verifier() note.Verifier {
	pub, _ := h.cfg.AuditCertificate.PublicKey.(*ecdsa.PublicKey)
	return must(audit.ECDSANoteVerifier(h.cfg.Origin, pub))(h.t)
}

// open opens an authority that is what it should be.
func (h *house) open() (*appliance.Authority, error) {
	h.t.Helper()
	return appliance.OpenAuthority(h.within(), h.cfg, appliance.Env{Version: "test"}, h.holder())
}

// honest runs an authority that is what it should be, until end is called.
func (h *house) honest() (a *appliance.Authority, end func()) {
	h.t.Helper()
	a = must(h.open())(h.t)
	closed := false
	end = func() {
		if !closed {
			closed = true
			no(h.t, a.Close(context.Background()))
		}
	}
	h.t.Cleanup(end)
	return a, end
}

// records are the log's, in which keep is true.
func (h *house) records(keep func(audit.Record) bool) []audit.Record {
	h.t.Helper()
	var all []audit.Record
	no(h.t, audit.Scan(h.log(), 0, func(l audit.Line) error {
		if keep(l.Record) {
			all = append(all, l.Record)
		}
		return nil
	}))
	return all
}

func is(event, outcome string) func(audit.Record) bool {
	return func(r audit.Record) bool { return r.Event == event && r.Outcome == outcome }
}

// recorded waits until the log of a running authority says that the keyholder
// refused what these words tell.
func (h *house) recorded(words ...string) {
	h.t.Helper()
	var all []string
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		all = nil
		for _, r := range h.records(is("keyholder", "refused")) {
			all = append(all, r.Object.Strings("refused")...)
		}
		text := strings.Join(all, "\n")
		var missing []string
		for _, w := range words {
			if !strings.Contains(text, w) {
				missing = append(missing, w)
			}
		}
		if len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			h.t.Errorf("the log does not tell that the keyholder refused %q, but:\n%s", missing, text)
			return
		}
	}
}

// fault wants the other role to have refused with a code.
func fault(t *testing.T, what string, err error, code link.Code) {
	t.Helper()
	if f, ok := errors.AsType[*link.Fault](err); !ok || f.Code != code {
		t.Errorf("%s: %v, want a fault of code %d", what, err, code)
	}
}

// wants notes what the log has to tell at the end.
func (h *house) wants(words ...string) { h.wanted = append(h.wanted, words...) }

// enrollment is what a device asks with a challenge.
func enrollment(key *rsa.PrivateKey, c site.Challenge) client.Enrollment {
	return client.Enrollment{Key: key, Subject: pkix.Name{CommonName: strings.TrimPrefix(c.Subject, "CN=")}, Challenge: []byte(c.Challenge)}
}
