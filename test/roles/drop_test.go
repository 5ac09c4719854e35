package roles_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
)

// followed is the chain of the log on the disk, and its last line's place.
func (h *house) followed() *audit.Chain {
	h.t.Helper()
	c := new(audit.Chain)
	no(h.t, audit.Scan(h.log(), 0, c.Step))
	return c
}

// next is the next line of a log, written by hand.
func next(t *testing.T, c *audit.Chain, o audit.Object) audit.Line {
	t.Helper()
	h := c.Head()
	l := must(audit.Encode(audit.Record{Seq: h.Size, Prev: hex.EncodeToString(h.Prev[:]), Time: time.Now(), Event: "note", Outcome: "ok", Actor: audit.Actor{Kind: "system"}, Object: o}))(t)
	no(t, c.Step(l))
	return l
}

func restore(t *testing.T, from, to string) {
	t.Helper()
	no(t, os.RemoveAll(to))
	no(t, os.CopyFS(to, os.DirFS(from)))
}

// TestAnIssuanceCannotBeDropped has an authority that was taken over get a signature
// for a line of its log, and then a log without that line. The keyholder gives it
// no checkpoint of that one, takes no line of it, and says so to the next that asks;
// a start finds out, too.
func TestAnIssuanceCannotBeDropped(t *testing.T) {
	h := newHouse(t)
	_, end := h.honest()
	end()
	before := t.TempDir()
	no(t, os.CopyFS(before, os.DirFS(h.log())))
	without := h.followed() // as the liar will have the log

	l := h.lie()
	ticket := l.ticket()
	if _, err := ticket.Sign(l.within(), l.intend(ticket.Intent())); err != nil {
		t.Fatal(err)
	}
	// The log is left as it is, without the end that closing it would write.
	truth := l.log.Head()
	no(t, l.keys.Close())
	_ = l.log.Close(context.Background())

	for what, lines := range map[string]int{"the line dropped": 0, "another line in its place": 1, "more lines than there were": 3} {
		t.Run(what, func(t *testing.T) {
			chain, k := without.Clone(), h.holder()
			for range lines {
				next(t, chain, nil)
			}
			head := chain.Head()
			note, err := k.SignCheckpoint(h.within(), head)
			if note != nil || !errors.Is(err, rpc.ErrNotHead) {
				t.Fatalf("a checkpoint of the log without it: %q, %v", note, err)
			}
			for _, state := range []string{fmt.Sprintf("it has %d lines with root %x", truth.Size, truth.Root[:8]), fmt.Sprintf("this one %d with root %x", head.Size, head.Root[:8])} {
				if !strings.Contains(err.Error(), state) {
					t.Errorf("it does not name the state %q: %v", state, err)
				}
			}
			must(k.Next(h.within()))(t)
			_ = k.Follow(h.within(), []audit.Line{next(t, chain, audit.Object{"after": "it"})})
			l.until(t, what, func() bool { return errors.Is(k.Follow(h.within(), nil), rpc.ErrLine) })
		})
	}

	// The disk as the liar would have it, and an honest start on it.
	whole := t.TempDir()
	no(t, os.CopyFS(whole, os.DirFS(h.log())))
	restore(t, before, h.log())
	_, err := h.open()
	if m, ok := errors.AsType[*audit.MaintenanceError](err); !ok || !strings.Contains(m.Error(), fmt.Sprintf("%d records", without.Head().Size)) ||
		!strings.Contains(m.Error(), fmt.Sprintf("knows of %d", truth.Size)) && !strings.Contains(m.Error(), fmt.Sprintf("has seen %d", truth.Size)) {
		t.Errorf("a start on the disk without the line: %v", err)
	}
	// The true log is taken up again, and has what was tried.
	restore(t, whole, h.log())
	h.honest()
	h.recorded(fmt.Sprintf("a checkpoint of %d lines with root", without.Head().Size), "a line that does not continue the log")
}
