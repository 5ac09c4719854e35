package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// A Dialer has the next connection to a role. It blocks until there is one, or
// ctx ends.
type Dialer interface {
	Dial(ctx context.Context) (net.Conn, error)
}

// ClientOptions are what [NewClient] needs.
type ClientOptions struct {
	Self Hello
	Role string // that has to answer
	Dial Dialer
	// Up is called for each new connection before any other call goes over it, and
	// has to return before one does; its error ends the connection, and the next one
	// is made. Down is called when one that was up is gone, with the reason. Either
	// may be nil.
	Up   func(ctx context.Context, c *Client) error
	Down func(error)
	Log  *zap.Logger
}

// A Client calls one role, over one connection at a time; a lost one is made
// again in the background. It is safe for concurrent use.
type Client struct {
	o       ClientOptions
	current atomic.Pointer[session]
	stop    context.CancelFunc
	done    chan struct{}

	mu sync.Mutex
	up chan struct{} // closed while there is a connection
}

// Back-off between connections that came to nothing.
const (
	firstPause = 20 * time.Millisecond
	longPause  = time.Second
)

// NewClient returns a client that connects in the background, until Close.
func NewClient(o ClientOptions) *Client {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	o.Log = o.Log.With(zap.String("link", o.Role))
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{o: o, stop: cancel, done: make(chan struct{}), up: make(chan struct{})}
	go c.run(ctx)
	return c
}

// Close ends the connection; calls under way get [ErrGone].
func (c *Client) Close() error {
	c.stop()
	<-c.done
	return nil
}

// Ready waits until there is a connection.
func (c *Client) Ready(ctx context.Context) error {
	for {
		c.mu.Lock()
		up := c.up
		c.mu.Unlock()
		select {
		case <-up:
		case <-ctx.Done():
			return fmt.Errorf("%w: %s: %w", ErrDown, c.o.Role, ctx.Err())
		}
		if c.current.Load() != nil {
			return nil
		}
	}
}

// Connected reports whether there is a connection now.
func (c *Client) Connected() bool { return c.current.Load() != nil }

func (c *Client) run(ctx context.Context) {
	defer close(c.done)
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > longPause {
			pause = firstPause
		}
		c.o.Log.Warn("link lost", zap.Error(err))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, longPause)
	}
}

// once lives through one connection.
func (c *Client) once(ctx context.Context) error {
	conn, err := c.o.Dial.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	end := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer end()
	s := &session{wire: newWire(conn), pending: make(map[uint32]chan reply)}
	if err := s.hello(c.o.Self); err != nil {
		return err
	}
	peer, err := s.greeted(servesWithin)
	if err != nil {
		return err
	}
	if peer.Role != c.o.Role {
		return fmt.Errorf("%w: it is %q, not %q", ErrHello, peer.Role, c.o.Role)
	}
	if err := c.o.Self.fits(peer); err != nil {
		return err
	}
	read, over := make(chan error, 1), false // under the lock
	go func() {
		err := s.read()
		c.mu.Lock()
		if over = true; c.current.Load() == s {
			c.up = make(chan struct{})
			c.current.Store(nil)
		}
		c.mu.Unlock()
		s.end(err) // here, since Up may be waiting for an answer
		read <- err
	}()
	if c.o.Up != nil {
		first := &Client{o: c.o}
		first.current.Store(s)
		if err := c.o.Up(ctx, first); err != nil {
			_ = conn.Close()
			return fmt.Errorf("%w (%w)", err, <-read)
		}
	}
	c.mu.Lock()
	if !over {
		c.current.Store(s)
		close(c.up)
	}
	c.mu.Unlock()
	err = <-read
	if c.o.Down != nil {
		c.o.Down(err)
	}
	return err
}

// A Told is what [Client.Tell] sends.
type Told struct {
	Verb    Verb
	Message *Encoder
}

// Call asks for a verb and waits for its answer. The encoder must not be used
// again, and the decoder is the caller's. [ErrDown] says that nothing was sent; after any other error the server may have
// carried the call out.
func (c *Client) Call(ctx context.Context, v Verb, e *Encoder) (*Decoder, error) {
	return c.CallAfter(ctx, v, e, func() {})
}

// CallAfter is Call with what is told going before it, in one write. sent is called
// once, as soon as nothing more is written.
func (c *Client) CallAfter(ctx context.Context, v Verb, e *Encoder, sent func(), told ...Told) (*Decoder, error) {
	s := c.current.Load()
	if s == nil {
		sent()
		return nil, fmt.Errorf("%w: %s", ErrDown, c.o.Role)
	}
	body, err := s.call(ctx, v, e, sent, told)
	if err != nil {
		return nil, err
	}
	return NewDecoder(body), nil
}

// Tell sends what has no answer. Its failure ends the connection, with the
// server's fault as the reason.
func (c *Client) Tell(v Verb, e *Encoder) error {
	s := c.current.Load()
	if s == nil {
		return fmt.Errorf("%w: %s", ErrDown, c.o.Role)
	}
	if err := s.send(outgoing{kind: kindTell, verb: v, e: e}); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}

type reply struct {
	body []byte
	err  error
}

// session is one connection of a client.
type session struct {
	*wire
	calls   sync.Mutex
	next    uint32
	pending map[uint32]chan reply // nil: the connection is gone
}

func (s *session) call(ctx context.Context, v Verb, e *Encoder, sent func(), told []Told) ([]byte, error) {
	answer, id, err := s.begin(ctx, v, e, told)
	sent()
	if err != nil {
		return nil, err
	}
	select {
	case r := <-answer:
		return r.body, r.err
	case <-ctx.Done():
		if s.forget(id) {
			_ = s.send(outgoing{kind: kindCancel, id: id, e: new(Encoder)})
		}
		return nil, ctx.Err()
	}
}

// begin sends a call, and what is told before it.
func (s *session) begin(ctx context.Context, v Verb, e *Encoder, told []Told) (<-chan reply, uint32, error) {
	within := longestCall
	if t, ok := ctx.Deadline(); ok {
		within = max(time.Until(t), time.Millisecond)
	}
	answer := make(chan reply, 1)
	s.calls.Lock()
	if s.pending == nil {
		s.calls.Unlock()
		return nil, 0, ErrDown
	}
	s.next++
	id := s.next
	s.pending[id] = answer
	s.calls.Unlock()
	frames := make([]outgoing, 0, 2)
	for _, t := range told {
		frames = append(frames, outgoing{kind: kindTell, verb: t.Verb, e: t.Message})
	}
	if err := s.send(append(frames, outgoing{kindCall, v, id, within, e})...); err != nil {
		s.forget(id)
		if errors.Is(err, ErrTooLong) {
			return nil, 0, err
		}
		return nil, 0, fmt.Errorf("%w: %w", ErrGone, err)
	}
	return answer, id, nil
}

// forget reports whether the call was still waiting.
func (s *session) forget(id uint32) bool {
	s.calls.Lock()
	defer s.calls.Unlock()
	_, ok := s.pending[id]
	delete(s.pending, id)
	return ok
}

// read hands out answers until the connection ends, and returns why it did.
func (s *session) read() error {
	for {
		f, err := s.receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return ErrGone
			}
			return err
		}
		r := reply{body: f.body}
		switch f.kind {
		case kindAnswer:
		case kindFault:
			fault, err := decodeFault(f.body)
			if err != nil {
				return err
			}
			if f.id == 0 { // what was told was not taken
				return fault
			}
			r = reply{err: fault}
		default:
			return fmt.Errorf("%w: a frame of kind %d", ErrProtocol, f.kind)
		}
		s.calls.Lock()
		answer, ok := s.pending[f.id]
		delete(s.pending, f.id)
		s.calls.Unlock()
		if ok { // else it came too late
			answer <- r
		}
	}
}

// end fails what waits.
func (s *session) end(why error) {
	s.calls.Lock()
	defer s.calls.Unlock()
	for _, answer := range s.pending {
		answer <- reply{err: fmt.Errorf("%w: %w", ErrGone, why)}
	}
	s.pending = nil
}
