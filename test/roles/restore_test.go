package roles_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/site"
	"github.com/postern-pki/postern/test/softhsm"
)

// A past is a site's folders as they were once.
type past struct {
	dir   string
	lines int
}

// marked is how many of the lines the token's mark knows of: the last line says that
// their checkpoint was signed.
func (p past) marked() int { return p.lines - 1 }

// now is a copy of what is on the disk of a service that is stopped.
func now(t *testing.T, s *site.Site) past {
	t.Helper()
	p := past{dir: t.TempDir(), lines: len(must(s.Lines(0))(t))}
	for _, name := range []string{"state", "keyholder"} {
		no(t, os.CopyFS(filepath.Join(p.dir, name), os.DirFS(s.Path(name))))
	}
	return p
}

// back puts folders of the past in the place of today's.
func (p past) back(t *testing.T, s *site.Site, names ...string) {
	t.Helper()
	for _, name := range names {
		restore(t, filepath.Join(p.dir, name), s.Path(name))
	}
}

// refuses wants the service not to start, and to say why.
func refuses(t *testing.T, what string, s *site.Site, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, stderr, code := site.Run(ctx, nil, filepath.Join(bin, "posternd"), "--config", s.Config())
	if code != 1 {
		t.Errorf("%s: exit %d, want 1: %s", what, code, stderr)
	}
	for _, w := range words {
		if !strings.Contains(stderr, w) {
			t.Errorf("%s: it does not say %q: %s", what, w, stderr)
		}
	}
}

// serves wants the service to start, to work and to stop in order.
func serves(t *testing.T, what string, s *site.Site) {
	t.Helper()
	if err := s.Start(t.Context()); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	enrolls(t, s, what)
	no(t, s.Stop())
	no(t, s.Verify(t.Context()))
}

// enrolls has one more certificate issued.
func enrolls(t *testing.T, s *site.Site, what string) {
	t.Helper()
	key := newKey(t)
	c := must(s.NewChallenge(t.Context(), "interop", "CN=d.demo.example"))(t)
	d := must(s.Device(t.Context(), "interop"))(t)
	defer d.HTTP.CloseIdleConnections()
	if _, err := d.Enroll(t.Context(), enrollment(key, c)); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// TestAnOldDiskBesideItsToken puts older copies of the folders back, as a backup
// that was restored would be.
func TestAnOldDiskBesideItsToken(t *testing.T) {
	s := newSite(t, nil)
	serves(t, "a new site", s)
	old := now(t, s)
	serves(t, "a day later", s)
	newest := now(t, s)
	had, knows := fmt.Sprintf("the log has %d records", old.lines), fmt.Sprintf("has seen %d", newest.lines)

	old.back(t, s, "state")
	refuses(t, "an old log", s, "maintenance", had, knows)
	refuses(t, "an old log, once more", s, had, knows)
	old.back(t, s, "state", "keyholder")
	refuses(t, "an old log with the keyholder's folder", s, "maintenance",
		fmt.Sprintf("the log on this disk has %d records", old.lines), fmt.Sprintf("the mark on the token knows of %d: an old disk was put back", newest.marked()))
	no(t, os.RemoveAll(s.Path("keyholder")))
	refuses(t, "an old log, and no keyholder's folder", s, fmt.Sprintf("has %d records", old.lines), fmt.Sprintf("the mark on the token knows of %d", newest.marked()))
	if n := len(must(s.Lines(0))(t)); n != old.lines {
		t.Errorf("a start that was refused wrote %d lines", n-old.lines)
	}

	newest.back(t, s, "state", "keyholder")
	serves(t, "the newest log", s)
	newest = now(t, s)
	old.back(t, s, "keyholder")
	serves(t, "the newest log, and an old keyholder's folder", s)
	no(t, os.RemoveAll(s.Path("keyholder")))
	serves(t, "the newest log, and no keyholder's folder", s)
	if _, err := os.Stat(s.Path("keyholder", "head")); err != nil {
		t.Error(err)
	}
}

// TestAHeadFileThatIsDamaged: a slot that a crash tore is made up for by the other,
// and anything worse is not.
func TestAHeadFileThatIsDamaged(t *testing.T) {
	s := newSite(t, nil)
	serves(t, "a new site", s)
	path := s.Path("keyholder", "head")
	whole := must(os.ReadFile(path))(t)
	half := len(whole) / 2
	for i := range 2 {
		torn := bytes.Clone(whole)
		clear(torn[i*half+100 : (i+1)*half])
		torn[i*half] ^= 1
		no(t, os.WriteFile(path, torn, 0o600))
		serves(t, fmt.Sprintf("slot %d is torn", i), s)
		whole = must(os.ReadFile(path))(t)
	}
	no(t, os.WriteFile(path, whole[:half], 0o600))
	refuses(t, "half a file", s, "its own record of the log's head is damaged")
	both := bytes.Clone(whole)
	both[20] ^= 1
	both[half+20] ^= 1
	no(t, os.WriteFile(path, both, 0o600))
	refuses(t, "both slots", s, "its own record of the log's head is damaged")
	no(t, os.WriteFile(path, whole, 0o600))
	serves(t, "as it was", s)
}

const markLabel = "postern log mark"

// onToken does something with the token of a site that is stopped.
func onToken(t *testing.T, s *site.Site, do func(tok *hsm.Token)) {
	t.Helper()
	cfg := must(config.Load(s.Config()))(t)
	t.Setenv("SOFTHSM2_CONF", cfg.SoftHSM2Conf)
	tok := must(hsm.Open(t.Context(), hsm.Config{Module: cfg.Token.Module, Serial: cfg.Token.Serial, Label: cfg.Token.Label, PIN: hsm.PINFromFile(cfg.Tokens[0].PINPath), Sessions: 2, Deadline: 10 * time.Second}))(t)
	defer func() { no(t, tok.Close()) }()
	do(tok)
}

// TestMarksOnTheToken has the token keep what another log, or a crash in the middle
// of a replacement, left there.
func TestMarksOnTheToken(t *testing.T) {
	s := newSite(t, nil)
	serves(t, "a new site", s)
	old := now(t, s)
	var first, second []byte
	mark := func(tok *hsm.Token) []byte {
		all := must(tok.ReadData(t.Context(), markLabel))(t)
		if len(all) != 1 {
			t.Fatalf("%d marks are on the token", len(all))
		}
		return all[0]
	}
	onToken(t, s, func(tok *hsm.Token) { first = mark(tok) })
	serves(t, "a day later", s)
	newest := now(t, s)
	onToken(t, s, func(tok *hsm.Token) {
		second = mark(tok)
		create(t, tok, first) // the old one was not destroyed yet
		if all := must(tok.ReadData(t.Context(), markLabel))(t); len(all) != 2 {
			t.Fatalf("%d marks are on the token", len(all))
		}
	})
	if bytes.Equal(first, second) {
		t.Fatal("the mark did not move")
	}
	old.back(t, s, "state", "keyholder")
	refuses(t, "an old disk beside two marks", s, fmt.Sprintf("has %d records", old.lines), fmt.Sprintf("the mark on the token knows of %d", newest.marked()))
	newest.back(t, s, "state", "keyholder")
	serves(t, "two marks", s)
	var third []byte
	onToken(t, s, func(tok *hsm.Token) {
		third = mark(tok)
		no(t, tok.ReplaceData(t.Context(), markLabel, foreign(t, "another.example/log")))
	})
	refuses(t, "another log's mark", s, "the token's mark is not one of this log", "postern-ceremony run new-log")
	onToken(t, s, func(tok *hsm.Token) {
		no(t, tok.ReplaceData(t.Context(), markLabel, foreign(t, "demo.example/log")))
	})
	refuses(t, "this log's name, by another key", s, "the token's mark is not one of this log")
	onToken(t, s, func(tok *hsm.Token) { no(t, tok.ReplaceData(t.Context(), markLabel, third)) })
	serves(t, "its own mark again", s)
}

// foreign is a checkpoint that our audit key did not sign.
func foreign(t *testing.T, origin string) []byte {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	text := audit.NoteText(origin, audit.Head{Size: 1})
	sum := sha256.Sum256([]byte(text))
	return must(audit.AssembleNote(origin, &key.PublicKey, text, must(ecdsa.SignASN1(rand.Reader, key, sum[:]))(t)))(t)
}

// create stores a mark beside the one that is there.
func create(t *testing.T, tok *hsm.Token, value []byte) {
	t.Helper()
	p := pkcs11.New(softhsm.Module) // which is loaded, and logged in
	defer p.Destroy()
	h := must(p.OpenSession(tok.Slot().ID, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION))(t)
	defer func() { _ = p.CloseSession(h) }()
	must(p.CreateObject(h, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, "postern"), pkcs11.NewAttribute(pkcs11.CKA_LABEL, markLabel), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
	}))(t)
}
