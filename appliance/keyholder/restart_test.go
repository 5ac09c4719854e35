package keyholder_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/appliance/keyholder"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/hsm/issuer"
)

const label = "mark"

// marks keeps a mark on the token, as the appliance does.
type marks struct{ token *hsm.Token }

func (m marks) Read(ctx context.Context) ([][]byte, error) {
	all, err := m.token.ReadData(ctx, label)
	if errors.Is(err, hsm.ErrNoData) {
		return nil, nil
	}
	return all, err
}

func (m marks) Replace(ctx context.Context, mark []byte) error {
	return m.token.ReplaceData(ctx, label, mark)
}

// remembering has a keyholder remember, in a folder and on the token.
func remembering(w *world) {
	w.o.Dir, w.o.Marks = w.t.TempDir(), marks{w.token}
}

// restart stops the keyholder in order and starts another one.
func (w *world) restart() {
	w.t.Helper()
	if err := w.holder.Close(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.holder = must[*keyholder.Keyholder](w.t)(keyholder.New(w.t.Context(), w.o))
	w.issuer = must[*issuer.Issuer](w.t)(issuer.New("corp", w.ca, w.holder, issuer.Options{}))
}

func (w *world) next() uint64 {
	w.t.Helper()
	return must[uint64](w.t)(w.holder.Next(w.t.Context()))
}

// checkpoint has the head signed.
func (w *world) checkpoint() []byte {
	w.t.Helper()
	return must[[]byte](w.t)(w.holder.SignCheckpoint(w.t.Context(), w.chain.Head()))
}

// recorded wants each of the words among what the authority is told was refused.
func (w *world) recorded(words ...string) {
	w.t.Helper()
	all := strings.Join(must[rpc.HolderStatus](w.t)(w.holder.Status(w.t.Context())).Refused, "\n")
	for _, word := range words {
		if !strings.Contains(all, word) {
			w.t.Errorf("what was refused does not tell of %q:\n%s", word, all)
		}
	}
}

// After a restart it takes the lines since its own head and nothing else, and signs
// no intent that it does not remember.
func TestItGoesOnWhereItStopped(t *testing.T) {
	w := newWorld(t, remembering)
	ticket, o := w.ticket()
	seq := w.chain.Head().Size
	w.feed(w.line("enroll", "intent", o))
	w.checkpoint()
	w.restart()
	if n := w.next(); n != w.chain.Head().Size {
		t.Errorf("it stands before line %d, and was fed %d", n, w.chain.Head().Size)
	}
	w.refused("an intent from before", "corp", ticket.Intent().TBS, seq)
	if err := w.holder.Follow(t.Context(), w.lines[:1]); !errors.Is(err, audit.ErrSequence) {
		t.Errorf("a line that it has seen: %v", err)
	}
	ticket, o = w.ticket()
	seq = w.chain.Head().Size
	w.feed(w.line("enroll", "intent", o))
	if _, err := ticket.Sign(t.Context(), seq); err != nil {
		t.Error(err)
	}
	w.checkpoint()
}

// A head that a signature follows from is durable before it leaves: a keyholder that
// is killed knows of it.
func TestTheHeadIsDurableBeforeASignature(t *testing.T) {
	for name, sign := range map[string]func(w *world){
		"a certificate": func(w *world) {
			ticket, o := w.ticket()
			seq := w.chain.Head().Size
			w.feed(w.line("enroll", "intent", o))
			must[[]byte](w.t)(ticket.Sign(w.t.Context(), seq))
		},
		"a checkpoint": func(w *world) {
			w.feed(w.line("note", "ok", nil))
			w.checkpoint()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, remembering)
			sign(w)
			// As it is on the disk now, without the end that Close writes.
			data := must[[]byte](t)(os.ReadFile(filepath.Join(w.o.Dir, "head")))
			w.o.Dir = t.TempDir()
			if err := os.WriteFile(filepath.Join(w.o.Dir, "head"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			w.restart()
			if n := w.next(); n != w.chain.Head().Size {
				t.Errorf("it remembers %d lines, and signed for %d", n, w.chain.Head().Size)
			}
		})
	}
}

// The folder is lost, the token is there: it is fed the whole log again, and signs
// nothing before it is where the mark is.
func TestAFolderThatIsLost(t *testing.T) {
	w := newWorld(t, remembering)
	for range 5 {
		w.feed(w.line("note", "ok", nil))
	}
	w.checkpoint()
	if err := w.holder.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.o.Dir = t.TempDir()
	w.restart2()
	if n := w.next(); n != 0 {
		t.Fatalf("it stands before line %d", n)
	}
	size, who, err := w.holder.Seen(t.Context())
	if err != nil || size != w.chain.Head().Size || who != "the mark on the token" {
		t.Errorf("it knows of %d lines, by %s: %v", size, who, err)
	}
	// Less than the mark: nothing is signed, although it is the head of what it saw.
	var short audit.Chain
	for _, l := range w.lines[:3] {
		if err := short.Step(l); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.holder.Follow(t.Context(), w.lines[:3]); err != nil {
		t.Fatal(err)
	}
	if n, err := w.holder.SignCheckpoint(t.Context(), short.Head()); !errors.Is(err, rpc.ErrNotHead) || n != nil ||
		!strings.Contains(err.Error(), fmt.Sprintf("knows of %d lines", size)) || !strings.Contains(err.Error(), "this log has 3") {
		t.Errorf("a checkpoint of less than the mark: %q, %v", n, err)
	}
	w.recorded(fmt.Sprintf("a checkpoint of 3 lines; the mark on the token knows of %d", size))
	if err := w.holder.Follow(t.Context(), w.lines[3:]); err != nil {
		t.Fatal(err)
	}
	w.checkpoint()
}

// restart2 starts a keyholder after another that was closed.
func (w *world) restart2() {
	w.t.Helper()
	w.holder = must[*keyholder.Keyholder](w.t)(keyholder.New(w.t.Context(), w.o))
}

// An intent of a log that has less than the mark is not signed either.
func TestALogBehindTheMarkIssuesNothing(t *testing.T) {
	w := newWorld(t, remembering)
	old, lines := w.chain.Clone(), len(w.lines)
	for range 4 {
		w.feed(w.line("note", "ok", nil))
	}
	w.checkpoint()
	if err := w.holder.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// An old copy of the disk, with the keyholder's folder.
	w.chain, w.o.Dir = *old, t.TempDir()
	w.restart2()
	if err := w.holder.Follow(t.Context(), w.lines[:lines]); err != nil {
		t.Fatal(err)
	}
	w.lines = w.lines[:lines]
	w.issuer = must[*issuer.Issuer](t)(issuer.New("corp", w.ca, w.holder, issuer.Options{}))
	ticket, o := w.ticket()
	seq := w.chain.Head().Size
	w.feed(w.line("enroll", "intent", o))
	w.refused("an intent behind the mark", "corp", ticket.Intent().TBS, seq)
	w.recorded("less of the log than the mark on the token knows of")
	// And as many other lines as the mark has are not the mark's.
	var err error
	for range 4 {
		l := w.line("note", "ok", audit.Object{"other": 1})
		if stepped := w.chain.Step(l); stepped != nil {
			t.Fatal(stepped)
		}
		if err = w.holder.Follow(t.Context(), []audit.Line{l}); err != nil {
			break
		}
	}
	if !errors.Is(err, rpc.ErrLine) || !strings.Contains(err.Error(), "the mark on the token") {
		t.Errorf("another history: %v", err)
	}
	w.recorded("are not those of the mark on the token")
	if _, err := w.holder.SignCheckpoint(t.Context(), w.chain.Head()); !errors.Is(err, rpc.ErrLine) {
		t.Errorf("a checkpoint of another history: %v", err)
	}
}

// data has another program store a data object beside the one that is there.
func (w *world) data(value []byte) {
	w.t.Helper()
	p := pkcs11.New(w.soft.Module)
	defer p.Destroy()
	slot := w.token.Slot().ID
	h, err := p.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = p.CloseSession(h) }()
	if _, err := p.CreateObject(h, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_APPLICATION, "postern"), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
	}); err != nil {
		w.t.Fatal(err)
	}
}

// A replacement that was cut short leaves two marks: the newest counts, and the
// next replacement leaves one.
func TestTheNewestOfTwoMarksCounts(t *testing.T) {
	for name, newestLast := range map[string]bool{"the newest came last": true, "the newest was there": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, remembering)
			old := w.checkpoint()
			w.feed(w.line("note", "ok", nil))
			newest := w.checkpoint()
			if err := w.holder.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			two := [][]byte{old, newest}
			if !newestLast {
				two = [][]byte{newest, old}
			}
			if err := w.token.ReplaceData(t.Context(), label, two[0]); err != nil {
				t.Fatal(err)
			}
			w.data(two[1])
			if all := must[[][]byte](t)(w.token.ReadData(t.Context(), label)); len(all) != 2 {
				t.Fatalf("%d marks are on the token", len(all))
			}
			w.o.Dir = t.TempDir()
			w.restart2()
			if size, who, err := w.holder.Seen(t.Context()); err != nil || size != 2 || who != "the mark on the token" {
				t.Errorf("it knows of %d lines, by %s: %v", size, who, err)
			}
			if err := w.holder.Follow(t.Context(), w.lines); err != nil {
				t.Fatal(err)
			}
			w.checkpoint()
			if err := w.holder.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if all := must[[][]byte](t)(w.token.ReadData(t.Context(), label)); len(all) != 1 {
				t.Errorf("%d marks are left", len(all))
			}
		})
	}
}

// Another log's mark on the token is a way out that two people take, not one that a
// start finds by itself.
func TestAnotherLogsMark(t *testing.T) {
	w := newWorld(t, remembering)
	w.checkpoint()
	if err := w.holder.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.o.Origin = "other.example/log"
	if _, err := keyholder.New(t.Context(), w.o); !errors.Is(err, keyholder.ErrMark) || !strings.Contains(err.Error(), "postern-ceremony run new-log") {
		t.Errorf("another log's mark: %v", err)
	}
	w.o.Origin = origin
	if err := w.token.ReplaceData(t.Context(), label, []byte("no note at all\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := keyholder.New(t.Context(), w.o); !errors.Is(err, keyholder.ErrMark) {
		t.Errorf("a mark that is none: %v", err)
	}
}

// What was left open before a crash is not signed later, nor what is dated ahead.
func TestAnIntentIsSignedAtOnceOrNever(t *testing.T) {
	var ahead atomic.Int64
	w := newWorld(t, func(w *world) {
		w.o.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	for what, d := range map[string]time.Duration{"an old intent": 2*time.Minute + time.Second, "an intent of the future": -2*time.Minute - time.Minute} {
		ticket, o := w.ticket()
		seq := w.chain.Head().Size
		w.feed(w.line("enroll", "intent", o))
		ahead.Store(int64(d))
		w.refused(what, "corp", ticket.Intent().TBS, seq)
		w.recorded("old")
		ahead.Store(0)
		if _, err := ticket.Sign(t.Context(), seq); err != nil {
			t.Errorf("%s, in its time: %v", what, err)
		}
	}
}

// However many intents there are, a CA's key is not used faster than its rate.
func TestTheRateOfACA(t *testing.T) {
	w := newWorld(t, func(w *world) { w.o.Rate = 2 })
	const n = 30
	var tickets []*issuer.Ticket
	first := w.chain.Head().Size
	for range n {
		ticket, o := w.ticket()
		w.feed(w.line("enroll", "intent", o))
		tickets = append(tickets, ticket)
	}
	began, signed := time.Now(), 0
	for i, ticket := range tickets {
		_, err := ticket.Sign(t.Context(), first+uint64(i))
		switch {
		case err == nil:
			signed++
		case !errors.Is(err, issuer.ErrNotSigned):
			t.Error(err)
		}
	}
	if most := 3 + 2*int(time.Since(began)/time.Second+1); signed < 2 || signed > most {
		t.Errorf("%d certificates in %s at 2 a second", signed, time.Since(began))
	}
	w.recorded("faster than its rate")
}

// Who asks chooses some of the words of what is recorded: they stay within bounds,
// and are a text.
func TestWhatIsRefusedIsKeptWithinBounds(t *testing.T) {
	w := newWorld(t)
	for i := range 300 {
		name := strings.Repeat("x", i%2) + strings.Repeat("\u00e9", 600)
		w.refused("a long name", name, []byte{1}, 0)
	}
	s := must[rpc.HolderStatus](t)(w.holder.Status(t.Context()))
	if len(s.Refused) != 256 || s.Lost != 44 {
		t.Errorf("%d are kept, %d lost", len(s.Refused), s.Lost)
	}
	for _, one := range s.Refused {
		if len(one) > 520 || strings.ToValidUTF8(one, "") != one {
			t.Fatalf("%d octets: %q", len(one), one)
		}
	}
	if s := must[rpc.HolderStatus](t)(w.holder.Status(t.Context())); len(s.Refused) != 0 || s.Lost != 0 {
		t.Errorf("they are told twice: %+v", s)
	}
}
