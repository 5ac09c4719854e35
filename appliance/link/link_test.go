package link_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-pki/postern/appliance/link"
)

const (
	echo link.Verb = iota + 1
	note
	read
	hang
	fail
	crash
	secret
)

// ends is a dialer of connections that a test hands over.
type ends chan net.Conn

func (e ends) Dial(ctx context.Context) (net.Conn, error) {
	select {
	case c := <-e:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func conns(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fa, fb, err := link.Pair(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	for f, c := range map[*os.File]*net.Conn{fa: &a, fb: &b} {
		if *c, err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return a, b
}

// A peer serves a few verbs, and remembers what it was told.
type peer struct {
	mu      sync.Mutex
	told    []string
	refused []string
	hung    chan struct{} // closed when a hanging call's context ended
}

func (p *peer) server(self link.Hello) *link.Server {
	p.hung = make(chan struct{})
	return link.NewServer(link.ServerOptions{Self: self, Refused: func(role string, v link.Verb, _ error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.refused = append(p.refused, fmt.Sprint(role, v))
	}, Verbs: map[string]map[link.Verb]link.Handler{"gate": {
		echo: {Do: func(_ context.Context, d *link.Decoder, out *link.Encoder) error {
			s := d.String(1 << 20)
			out.String(s)
			return d.Err()
		}},
		note: {Ordered: true, Do: func(_ context.Context, d *link.Decoder, _ *link.Encoder) error {
			s := d.String(100)
			if s == "bad" {
				return &link.Fault{Code: 99, Text: "not taken"}
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.told = append(p.told, s)
			return d.Err()
		}},
		read: {Do: func(_ context.Context, _ *link.Decoder, out *link.Encoder) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			out.String(strings.Join(p.told, ","))
			return nil
		}},
		hang: {Do: func(ctx context.Context, _ *link.Decoder, _ *link.Encoder) error {
			<-ctx.Done()
			close(p.hung)
			return ctx.Err()
		}},
		fail:  {Do: func(context.Context, *link.Decoder, *link.Encoder) error { return &link.Fault{Code: 70, Text: "no"} }},
		crash: {Do: func(context.Context, *link.Decoder, *link.Encoder) error { panic("canary") }},
	}, "other": {}}})
}

func hello(role string) link.Hello { return link.Hello{Role: role, Build: "v1", Config: "c1"} }

// joined returns a client of a peer.
func joined(t *testing.T, p *peer) *link.Client {
	t.Helper()
	s, dial := p.server(hello("authority")), make(ends, 1)
	a, b := conns(t)
	go func() { _ = s.Serve(t.Context(), b, "gate") }()
	dial <- a
	c := link.NewClient(link.ClientOptions{Self: hello("gate"), Role: "authority", Dial: dial})
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func say(text string) *link.Encoder {
	e := new(link.Encoder)
	e.String(text)
	return e
}

func TestCallsAreAnsweredEachWithItsOwn(t *testing.T) {
	c := joined(t, new(peer))
	var wait sync.WaitGroup
	for i := range 100 {
		wait.Go(func() {
			text := strings.Repeat(fmt.Sprint(i, " "), i*20)
			d, err := c.Call(t.Context(), echo, say(text))
			if err != nil {
				t.Error(err)
				return
			}
			if got := d.String(1 << 20); got != text || d.Err() != nil {
				t.Errorf("call %d got the answer of another: %d octets, %v", i, len(got), d.Err())
			}
		})
	}
	wait.Wait()
}

// What is told is handled in order, and before a call that comes after it.
func TestWhatIsToldComesInOrder(t *testing.T) {
	c := joined(t, new(peer))
	var want []string
	for i := range 200 {
		want = append(want, fmt.Sprint(i))
		if err := c.Tell(note, say(want[i])); err != nil {
			t.Fatal(err)
		}
	}
	d, err := c.Call(t.Context(), read, new(link.Encoder))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.String(1 << 20); got != strings.Join(want, ",") {
		t.Errorf("it was told %s", got)
	}
}

// Something told that was not taken cannot be passed over: the link ends, and its
// owner learns why.
func TestWhatIsNotTakenEndsTheLink(t *testing.T) {
	s, dial, why := new(peer).server(hello("authority")), make(ends, 1), make(chan error, 1)
	a, b := conns(t)
	go func() { _ = s.Serve(t.Context(), b, "gate") }()
	dial <- a
	c := link.NewClient(link.ClientOptions{Self: hello("gate"), Role: "authority", Dial: dial, Down: func(err error) { why <- err }})
	defer func() { _ = c.Close() }()
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Tell(note, say("bad")); err != nil {
		t.Fatal(err)
	}
	if f, ok := errors.AsType[*link.Fault](<-why); !ok || f.Code != 99 || f.Text != "not taken" {
		t.Errorf("the link ended with %v", f)
	}
	if _, err := c.Call(t.Context(), echo, say("x")); !errors.Is(err, link.ErrDown) {
		t.Errorf("a call after that: %v", err)
	}
}

// A caller's deadline and a caller's hang-up reach the other process.
func TestADeadlineAndACancelCrossTheLink(t *testing.T) {
	for name, limit := range map[string]func(context.Context) (context.Context, context.CancelFunc){
		"a deadline": func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 30*time.Millisecond)
		},
		"a cancel": func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(30*time.Millisecond, cancel)
			return ctx, cancel
		},
	} {
		p := new(peer)
		c := joined(t, p)
		ctx, cancel := limit(t.Context())
		if _, err := c.Call(ctx, hang, new(link.Encoder)); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		select {
		case <-p.hung:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the other process goes on", name)
		}
	}
}

func TestFaultsKeepTheirCode(t *testing.T) {
	p := new(peer)
	c := joined(t, p)
	for verb, code := range map[link.Verb]link.Code{fail: 70, crash: link.CodeOther, secret: link.CodeRefused} {
		_, err := c.Call(t.Context(), verb, new(link.Encoder))
		f, ok := errors.AsType[*link.Fault](err)
		if !ok || f.Code != code || strings.Contains(f.Text, "canary") {
			t.Errorf("verb %d: %v, want code %d", verb, err, code)
		}
	}
	if _, err := c.Call(t.Context(), echo, new(link.Encoder)); err == nil {
		t.Error("a message that is cut off was taken")
	}
	if want := []string{fmt.Sprint("gate", secret), fmt.Sprint("gate", echo)}; !slices.Equal(p.refused, want) {
		t.Errorf("refused: %v, want %v", p.refused, want)
	}
	if _, err := c.Call(t.Context(), echo, say("still there")); err != nil {
		t.Error(err)
	}
}

// A server that went away fails what waits, and is called again when it is back.
func TestALostServerIsCalledAgain(t *testing.T) {
	s, dial := new(peer).server(hello("authority")), make(ends, 1)
	serve := func() net.Conn {
		a, b := conns(t)
		go func() { _ = s.Serve(t.Context(), b, "gate") }()
		dial <- a
		return b
	}
	server := serve()
	c := link.NewClient(link.ClientOptions{Self: hello("gate"), Role: "authority", Dial: dial})
	defer func() { _ = c.Close() }()
	if err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.Call(t.Context(), hang, new(link.Encoder))
		failed <- err
	}()
	time.Sleep(10 * time.Millisecond)
	_ = server.Close()
	if err := <-failed; !errors.Is(err, link.ErrGone) {
		t.Errorf("what waited got %v", err)
	}
	if _, err := c.Call(t.Context(), echo, say("x")); !errors.Is(err, link.ErrDown) {
		t.Errorf("with nobody there: %v", err)
	}
	serve()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Call(ctx, echo, say("x")); err != nil {
		t.Error(err)
	}
}

func TestOnlyOneBuildAndOneConfigurationTalk(t *testing.T) {
	for name, mine := range map[string]link.Hello{
		"another build":         {Role: "gate", Build: "v2", Config: "c1"},
		"another configuration": {Role: "gate", Build: "v1", Config: "c2"},
		"another role":          {Role: "other", Build: "v1", Config: "c1"},
		"no role of the table":  {Role: "nobody", Build: "v1", Config: "c1"},
	} {
		s, dial := new(peer).server(hello("authority")), make(ends, 1)
		a, b := conns(t)
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), b, "gate") }()
		dial <- a
		c := link.NewClient(link.ClientOptions{Self: mine, Role: "authority", Dial: dial})
		if err := <-served; !errors.Is(err, link.ErrHello) {
			t.Errorf("%s: %v", name, err)
		}
		if c.Connected() {
			t.Errorf("%s: it is connected", name)
		}
		_ = c.Close()
	}
}

// A peer that breaks the rules is gone; nothing panics, and nothing large is
// allocated for what was only announced.
func TestFramesThatBreakTheRules(t *testing.T) {
	good := func(kind byte, n uint32, body string) []byte {
		b := make([]byte, 14, 14+len(body))
		binary.BigEndian.PutUint32(b, n)
		b[4] = kind
		return append(b, body...)
	}
	for name, bytes := range map[string][]byte{
		"no hello":           good(2, 10, ""),
		"a length of 4 GiB":  good(1, 1<<32-1, ""),
		"a length of 0":      good(1, 0, ""),
		"20 MiB that end":    good(1, 20<<20, "postern"),
		"a hello of garbage": good(1, 10+7, "garbage"),
		"text":               []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
	} {
		s := new(peer).server(hello("authority"))
		a, b := conns(t)
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), b, "gate") }()
		if _, err := a.Write(bytes); err != nil {
			t.Fatal(err)
		}
		_ = a.(*net.UnixConn).CloseWrite()
		if err := <-served; err == nil {
			t.Errorf("%s was taken", name)
		}
		_, _ = io.Copy(io.Discard, a)
		_ = a.Close()
	}
}

func FuzzDecoder(f *testing.F) {
	e := new(link.Encoder)
	e.Uint(300)
	e.Int(-5)
	e.Bool(true)
	e.Bytes([]byte("octets"))
	e.Strings([]string{"a", "b"})
	e.List([][]byte{{1}, nil})
	f.Add(e.Body())
	f.Add([]byte{0x80, 0x00})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, in []byte) {
		d := link.NewDecoder(in)
		n, i, v, p, s, l := d.Uint(), d.Int(), d.Bool(), d.Bytes(100), d.Strings(10, 10), d.List(10, 10)
		if d.Err() != nil {
			return
		}
		again := new(link.Encoder)
		again.Uint(n)
		again.Int(i)
		again.Bool(v)
		again.Bytes(p)
		again.Strings(s)
		again.List(l)
		if string(again.Body()) != string(in) {
			t.Errorf("%x was read, and is written as %x", in, again.Body())
		}
	})
}

// FuzzServer: whatever a peer sends after its hello, the server ends in order.
func FuzzServer(f *testing.F) {
	call := make([]byte, 14)
	binary.BigEndian.PutUint32(call, 10+2)
	call[4], call[5] = 2, byte(echo)
	binary.BigEndian.PutUint32(call[6:], 1)
	binary.BigEndian.PutUint32(call[10:], 100)
	f.Add(append(call, 1, 'x'))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := new(peer).server(hello("authority"))
		a, b := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), b, "gate") }()
		e := new(link.Encoder)
		e.String("postern")
		e.Uint(1)
		for _, w := range []string{"gate", "v1", "c1"} {
			e.String(w)
		}
		h := make([]byte, 14)
		binary.BigEndian.PutUint32(h, uint32(10+e.Len()))
		h[4] = 1
		go func() { _, _ = io.Copy(io.Discard, a) }()
		_ = a.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = a.Write(append(append(h, e.Body()...), in...))
		_ = a.Close()
		select {
		case err := <-served:
			_ = err // in order, or with a reason
		case <-time.After(20 * time.Second):
			t.Fatal("it does not end")
		}
	})
}
