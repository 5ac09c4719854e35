package rpc

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/audit"
)

// A chained follows lines as the keyholder does, without keys.
type chained struct {
	LogKeys
	mu    sync.Mutex
	chain audit.Chain
	mark  uint64 // what its token knows of
}

func (k *chained) Next(context.Context) (uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.chain.Head().Size, nil
}

func (k *chained) Seen(context.Context) (uint64, string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(k.chain.Head().Size, k.mark), "the mark on the token", nil
}

func (k *chained) Follow(_ context.Context, batch []audit.Line) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range batch {
		if err := k.chain.Step(l); err != nil {
			return err
		}
	}
	return nil
}

func (k *chained) Status(context.Context) (HolderStatus, error) { return HolderStatus{}, nil }

// A scene is an authority's view of a keyholder that may be replaced.
type scene struct {
	t      *testing.T
	next   chan net.Conn
	holder *Holder
	end    context.CancelFunc
	served chan struct{}
}

func (s *scene) Dial(ctx context.Context) (net.Conn, error) {
	select {
	case c := <-s.next:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newScene(t *testing.T, scan func(uint64, func(audit.Line) error) error) *scene {
	s := &scene{t: t, next: make(chan net.Conn)}
	s.holder = NewHolder(HolderOptions{Scan: scan, Link: link.ClientOptions{Self: link.Hello{Role: RoleAuthority}, Dial: s}})
	t.Cleanup(func() {
		if err := s.holder.Close(); err != nil {
			t.Error(err)
		}
		s.kill()
	})
	return s
}

func (s *scene) kill() {
	if s.end != nil {
		s.end()
		<-s.served
		s.end = nil
	}
}

// start has a keyholder accept links, until it is killed.
func (s *scene) start(k *chained) {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	s.end, s.served = cancel, served
	server := link.NewServer(link.ServerOptions{Self: link.Hello{Role: RoleKeyholder}, Verbs: KeyholderTable(nil, k)})
	context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = server.Serve(ctx, c, RoleAuthority)
		}
	}()
	go func() { // as many connections as are asked for
		for ctx.Err() == nil {
			c, err := net.Dial("unix", path)
			if err != nil {
				return
			}
			select {
			case s.next <- c:
			case <-ctx.Done():
				_ = c.Close()
				return
			}
		}
	}()
}

// level waits until the keyholder has all lines of the log.
func (s *scene) level(k *chained, lines uint64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	for {
		_, err := s.holder.Status(ctx)
		if n, _ := k.Next(ctx); err == nil && n == lines {
			return
		}
		if ctx.Err() != nil || errors.Is(err, ErrLine) {
			n, _ := k.Next(ctx)
			s.t.Fatalf("the keyholder has %d of %d lines: %v", n, lines, err)
		}
	}
}

func (s *scene) opened() {
	s.t.Helper()
	if _, err := s.holder.Next(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if _, _, err := s.holder.Seen(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) follow(lines ...audit.Line) {
	s.t.Helper()
	if err := s.holder.Follow(s.t.Context(), lines); err != nil {
		s.t.Fatal(err)
	}
}

func scanning(lines []audit.Line) func(uint64, func(audit.Line) error) error {
	return func(from uint64, fn func(audit.Line) error) error {
		for _, l := range lines[from:] {
			if err := fn(l); err != nil {
				return err
			}
		}
		return nil
	}
}

// A disk that could not be read once does not keep the keyholder away for ever.
func TestTheLogIsReadAgainForAKeyholderThatIsBehind(t *testing.T) {
	lines, failed := logLines(t, 4), false
	s := newScene(t, func(from uint64, fn func(audit.Line) error) error {
		if !failed {
			failed = true
			return errors.New("too many open files")
		}
		return scanning(lines)(from, fn)
	})
	k := &chained{}
	s.start(k)
	s.opened()
	s.follow(lines[:2]...)
	s.level(k, 2)
	s.kill()
	s.follow(lines[2:]...)
	s.start(k)
	s.level(k, 4)
}

// A keyholder that is replaced while it is fed what it has not seen is fed on: the
// mark on its token is ahead of what it was fed, and the log is not older.
func TestAKeyholderThatDiesWhileTheLogIsOpened(t *testing.T) {
	lines := logLines(t, 6)
	s := newScene(t, scanning(lines))
	k := &chained{mark: 5}
	s.start(k)
	s.opened()
	s.follow(lines[:2]...)
	s.level(k, 2)
	s.kill()
	k = &chained{mark: 5}
	s.start(k)
	s.level(k, 2)
	s.follow(lines[2:]...)
	s.level(k, 6)
}

// Once the log is open, a keyholder whose token knows of more lines than there are is
// of another log.
func TestAKeyholderThatKnowsOfMoreLines(t *testing.T) {
	lines := logLines(t, 6)
	s := newScene(t, scanning(lines))
	k := &chained{}
	s.start(k)
	s.opened()
	s.follow(lines...)
	s.level(k, 6)
	s.kill()
	s.start(&chained{mark: 7})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		_, err := s.holder.Status(ctx)
		if errors.Is(err, ErrLine) {
			return
		}
		if err == nil || ctx.Err() != nil {
			t.Fatalf("a token that knows of 7 lines of 6: %v", err)
		}
	}
}
