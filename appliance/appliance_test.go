package appliance

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
)

// fullDisk is a follower on a disk that has no more room.
type fullDisk struct{}

func (fullDisk) Next(context.Context) (uint64, error) { return 0, nil }

func (fullDisk) Follow(_ context.Context, batch []audit.Line) error {
	if batch[0].Record.Seq == 0 {
		return nil
	}
	return &os.PathError{Op: "write", Path: "index.db", Err: syscall.ENOSPC}
}

// stuck is a listener with a request that does not end.
type stuck struct{}

func (stuck) Serve() error { return nil }

func (stuck) Shutdown(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

// A request that does not end leaves the log time to record the stop.
func TestARequestThatHangsDoesNotHideTheStop(t *testing.T) {
	a := &Gate{env: Env{}.orDefault()}
	recorded := false
	a.onClose(func(ctx context.Context) error {
		recorded = true
		return ctx.Err()
	})
	a.serve(stuck{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := a.Close(ctx); err != nil || !recorded {
		t.Errorf("stop recorded: %v, %v", recorded, err)
	}
}

// A full disk stops the service for good: who asks is told what to do.
func TestAFullDiskIsSaidPlainly(t *testing.T) {
	l, err := audit.Open(t.Context(), audit.Options{Dir: t.TempDir(), Origin: "corp.example/log", Followers: []audit.Follower{fullDisk{}},
		Genesis: func() (audit.Entry, error) {
			return audit.Entry{Outcome: "ok", Actor: audit.Actor{Kind: "system"}}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(context.Background()) }()
	for range 2 { // the second time the disk is not asked
		if _, err := l.Append(t.Context(), audit.Entry{Event: "note", Outcome: "ok", Actor: audit.Actor{Kind: "system"}}); !errors.Is(err, audit.ErrPoisoned) {
			t.Fatal(err)
		}
	}
	if why := noLog(l.Healthy()); !strings.Contains(why, "the disk is full: make room, then start the service again") {
		t.Errorf("it says: %s", why)
	}
	if why := noLog(audit.ErrPoisoned); strings.Contains(why, "full") || !strings.Contains(why, "started again") {
		t.Errorf("another fault: %s", why)
	}
}

// What root makes anew has to be the service's, or it cannot start.
func TestAnIndexBelongsToWhoOwnsTheState(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "index.db.rebuild")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // nobody else can give a folder away
		if err := os.Chown(dir, 65534, 65533); err != nil {
			t.Fatal(err)
		}
	}
	if err := handOver(dir, path); err != nil {
		t.Fatal(err)
	}
	var owners [2][2]uint32
	for i, p := range []string{dir, path} {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if !ok {
			t.Fatalf("%T", st.Sys())
		}
		owners[i] = [2]uint32{sys.Uid, sys.Gid}
	}
	if owners[0] != owners[1] {
		t.Errorf("the folder is %v's and the index %v's", owners[0], owners[1])
	}
}
