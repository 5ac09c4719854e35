package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"
)

// A Handler carries out one verb. What it appends to out is the answer. An error
// that is a [*Fault] is sent as it is; of any other the text goes to the caller's
// journal, as what a peer was told.
type Handler struct {
	Do func(ctx context.Context, d *Decoder, out *Encoder) error
	// Ordered verbs are carried out one after the other, in the order in which they
	// came, before any call that came later; they have to be quick.
	Ordered bool
}

// ServerOptions are what [NewServer] needs.
type ServerOptions struct {
	Self Hello
	// Verbs is what each role may ask for. A role that is not in it is turned away.
	Verbs map[string]map[Verb]Handler
	// Refused is told of a verb that a role asked for and may not, and of a message
	// that could not be read; it may be nil.
	Refused func(role string, v Verb, why error)
	Log     *zap.Logger
}

// A Server serves the connections of other roles. It is safe for concurrent use.
type Server struct {
	o     ServerOptions
	mu    sync.Mutex
	open  map[string]net.Conn // by role: the newest one counts
	conns map[string]int      // by role: with those that said no hello yet, or whose calls are not over
}

// NewServer returns a server.
func NewServer(o ServerOptions) *Server {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Server{o: o, open: make(map[string]net.Conn), conns: make(map[string]int)}
}

// Serve serves one connection of a peer that is known to be role, until it ends
// or ctx does. It closes the one that this role had before: its other end is gone,
// or is no longer to be believed.
func (s *Server) Serve(ctx context.Context, conn net.Conn, role string) error {
	defer func() { _ = conn.Close() }()
	w := newWire(conn)
	leave, err := s.enter(role)
	if err != nil {
		_ = w.fault(0, &Fault{Code: CodeBusy, Text: err.Error()})
		return err
	}
	defer leave()
	peer, err := w.greeted(helloWithin)
	if err == nil {
		err = s.admit(peer, role)
	}
	if err != nil {
		_ = w.fault(0, &Fault{Code: CodeRefused, Text: err.Error()})
		return err
	}
	s.mu.Lock()
	if old := s.open[role]; old != nil {
		_ = old.Close()
	}
	s.open[role] = conn
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		if s.open[role] == conn {
			delete(s.open, role)
		}
		s.mu.Unlock()
	}()
	if err := w.hello(s.o.Self); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer end()
	p := &peerConn{s: s, w: w, role: role, running: make(map[uint32]context.CancelFunc), next: make(chan func()), idle: make(chan struct{}, maxIdle)}
	defer p.wait.Wait()
	defer cancel() // before waiting: nobody reads the answers
	return p.read(ctx)
}

// enter counts a connection of a role: one that is owned could else have the
// descriptors and calls of as many as it likes.
func (s *Server) enter(role string) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns[role] >= maxConns {
		return nil, fmt.Errorf("%w: %s has too many connections", ErrHello, role)
	}
	s.conns[role]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conns[role]--
	}, nil
}

func (s *Server) admit(peer Hello, role string) error {
	if _, ok := s.o.Verbs[role]; !ok || peer.Role != role {
		return fmt.Errorf("%w: %q may not use this link as %q", ErrHello, role, peer.Role)
	}
	return s.o.Self.fits(peer)
}

// peerConn is one connection of a server.
type peerConn struct {
	s    *Server
	w    *wire
	role string
	wait sync.WaitGroup

	mu      sync.Mutex
	running map[uint32]context.CancelFunc

	next chan func()   // for a goroutine that waits
	idle chan struct{} // has one for each that does
}

// maxIdle is how many goroutines wait for a call. A new one for each call would have
// to grow its stack in each, which was a hundredth of the keyholder's time.
const maxIdle = 8

// start runs a call beside the others, by a goroutine that waits if there is one.
func (p *peerConn) start(ctx context.Context, call func()) {
	select {
	case p.next <- call:
	default:
		p.wait.Go(func() { p.work(ctx, call) })
	}
}

func (p *peerConn) work(ctx context.Context, call func()) {
	for {
		call()
		select {
		case p.idle <- struct{}{}:
		default:
			return
		}
		select {
		case call = <-p.next:
			<-p.idle
		case <-ctx.Done():
			return
		}
	}
}

func (p *peerConn) read(ctx context.Context) error {
	for {
		f, err := p.w.receive()
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		switch f.kind {
		case kindCall, kindTell:
			if err := p.take(ctx, f); err != nil {
				return err
			}
		case kindCancel:
			p.mu.Lock()
			if cancel, ok := p.running[f.id]; ok {
				cancel()
			}
			p.mu.Unlock()
		default:
			return fmt.Errorf("%w: a frame of kind %d", ErrProtocol, f.kind)
		}
	}
}

// take carries out what is ordered, and starts what is not.
func (p *peerConn) take(ctx context.Context, f frame) error {
	h, ok := p.s.o.Verbs[p.role][f.verb]
	if !ok {
		fault := &Fault{Code: CodeRefused, Text: fmt.Sprintf("verb %d is not for the link of %s", f.verb, p.role)}
		p.refused(f.verb, fault)
		return p.answer(f, nil, fault)
	}
	if h.Ordered || f.kind == kindTell {
		out := new(Encoder)
		return p.answer(f, out, p.do(ctx, h, f, out))
	}
	within, cancel := context.WithTimeout(ctx, min(max(f.within, time.Millisecond), longestCall))
	p.mu.Lock()
	_, twice := p.running[f.id]
	full := len(p.running) >= maxRunning
	if !twice && !full {
		p.running[f.id] = cancel
	}
	p.mu.Unlock()
	if twice || full {
		cancel()
		return p.answer(f, nil, &Fault{Code: CodeBusy, Text: "too many calls are under way"})
	}
	p.start(ctx, func() {
		defer func() {
			cancel()
			p.mu.Lock()
			delete(p.running, f.id)
			p.mu.Unlock()
		}()
		out := new(Encoder)
		_ = p.answer(f, out, p.do(within, h, f, out)) // a peer that is gone is seen by the reader
	})
	return nil
}

func (p *peerConn) do(ctx context.Context, h Handler, f frame, out *Encoder) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p.s.o.Log.Error("link: panic", zap.Uint8("verb", uint8(f.verb)), zap.Any("value", v), zap.ByteString("stack", debug.Stack()))
			err = &Fault{Code: CodeOther, Text: "a fault of the program"}
		}
	}()
	err = h.Do(ctx, NewDecoder(f.body), out)
	if err != nil && faultOf(err).Code%FirstCode == CodeMessage {
		p.refused(f.verb, err)
	}
	return err
}

func (p *peerConn) refused(v Verb, why error) {
	if p.s.o.Refused != nil {
		p.s.o.Refused(p.role, v, why)
	}
}

// answer sends what came out. Something told that was not taken ends the connection.
func (p *peerConn) answer(f frame, out *Encoder, err error) error {
	if err == nil {
		if f.kind == kindTell {
			return nil
		}
		if err = p.w.send(outgoing{kind: kindAnswer, verb: f.verb, id: f.id, e: out}); !errors.Is(err, ErrTooLong) {
			return err
		}
	}
	fault := faultOf(err)
	if f.kind == kindTell {
		_ = p.w.fault(0, fault)
		return fmt.Errorf("link: verb %d: %w", f.verb, err)
	}
	return p.w.fault(f.id, fault)
}

func faultOf(err error) *Fault {
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	f := &Fault{Text: err.Error()}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		f.Code = CodeDeadline
	case errors.Is(err, context.Canceled):
		f.Code = CodeCanceled
	case errors.Is(err, ErrProtocol):
		f.Code = CodeMessage
	}
	return f
}
