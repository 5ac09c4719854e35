package link_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/link"
)

// A server that dies while it is asked for the first thing is called again: who
// waits for that answer hears of it.
func TestAServerThatDiesWhileALinkComesUpIsCalledAgain(t *testing.T) {
	p, dial := new(peer), make(ends, 2)
	s := p.server(hello("authority"))
	asked, first := make(chan net.Conn, 1), make(chan error, 1)
	for range 2 {
		a, b := conns(t)
		go func() { _ = s.Serve(t.Context(), b, "gate") }()
		dial <- a
		if len(asked) == 0 {
			asked <- b
		}
	}
	c := link.NewClient(link.ClientOptions{Self: hello("gate"), Role: "authority", Dial: dial, Up: func(ctx context.Context, c *link.Client) error {
		select {
		case b := <-asked:
			time.AfterFunc(100*time.Millisecond, func() { _ = b.Close() })
			_, err := c.Call(ctx, hang, new(link.Encoder))
			first <- err
		default:
		}
		return nil
	}})
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	select {
	case err := <-first:
		if !errors.Is(err, link.ErrGone) {
			t.Errorf("the first call: %v, want ErrGone", err)
		}
	case <-ctx.Done():
		t.Fatal("who waits for a server that is dead waits for ever")
	}
	for c.Ready(ctx) == nil {
		if _, err := c.Call(ctx, echo, say("again")); err == nil {
			return
		}
	}
	t.Error("the server that is back is not called")
}

// A connection over which nothing could be begun is no connection: the next is made.
func TestALinkThatDoesNotComeUpIsMadeAgain(t *testing.T) {
	p, dial, tries := new(peer), make(ends, 2), 0
	s := p.server(hello("authority"))
	for range 2 {
		a, b := conns(t)
		go func() { _ = s.Serve(t.Context(), b, "gate") }()
		dial <- a
	}
	c := link.NewClient(link.ClientOptions{Self: hello("gate"), Role: "authority", Dial: dial, Up: func(context.Context, *link.Client) error {
		if tries++; tries == 1 {
			return errors.New("not yet")
		}
		return nil
	}})
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil || len(dial) != 0 {
		t.Errorf("ready: %v, with %d connections left", err, len(dial))
	}
}

// A server may take its time before it looks at its links: the caller's end is not
// given up, as nobody would bring another one.
func TestAServerThatTakesItsTimeIsWaitedFor(t *testing.T) {
	t.Parallel()
	p, dial := new(peer), make(ends, 1)
	s := p.server(hello("authority"))
	a, b := conns(t)
	dial <- a
	time.AfterFunc(6*time.Second, func() { _ = s.Serve(t.Context(), b, "gate") })
	c := link.NewClient(link.ClientOptions{Self: hello("gate"), Role: "authority", Dial: dial})
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Error(err)
	}
}

// A role that opens one connection after the other has no more of them than a few,
// and is let in again when it has closed them.
func TestConnectionsOfOneRoleAreBounded(t *testing.T) {
	s, ended, open := new(peer).server(hello("authority")), make(chan error, 100), []net.Conn(nil)
	for range 100 {
		a, b := conns(t)
		open = append(open, a)
		go func() { ended <- s.Serve(t.Context(), b, "gate") }()
	}
	turned := 0
	for late := time.After(3 * time.Second); turned < 84; { // before the time for a hello is over
		select {
		case err := <-ended:
			if !errors.Is(err, link.ErrHello) {
				t.Fatalf("turned away with %v", err)
			}
			turned++
		case <-late:
			t.Fatalf("%d of 100 connections that say nothing are kept", 100-turned)
		}
	}
	for _, c := range open {
		_ = c.Close()
	}
	for range 16 {
		if err := <-ended; err == nil {
			t.Error("a connection without a hello ends without a word")
		}
	}
	a, b := conns(t)
	go func() { ended <- s.Serve(t.Context(), b, "gate") }()
	dial := make(ends, 1)
	dial <- a
	c := link.NewClient(link.ClientOptions{Self: hello("gate"), Role: "authority", Dial: dial})
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Ready(ctx); err != nil {
		t.Error(err)
	}
}
