package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"
)

// plainAnswer is what a client that forgot the "s" of https gets to read.
const plainAnswer = "HTTP/1.0 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\nThis is an HTTPS server.\n"

// accept takes connections from the listener until it is closed, and returns why
// it ended.
func (s *Server) accept() error {
	var delay time.Duration
	for {
		c, err := s.listener.Accept()
		if err != nil {
			if s.stopped() || errors.Is(err, net.ErrClosed) {
				return err
			}
			// Most of all: no file descriptors left. They come back.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			s.options.Log.Warn("accept", zap.Duration("retry", delay), zap.Error(err))
			select {
			case <-time.After(delay):
				continue
			case <-s.ctx.Done():
				return s.ctx.Err()
			}
		}
		delay = 0
		s.admit(c)
	}
}

// admit closes a connection that is one too many and starts the handshake of any
// other.
func (s *Server) admit(c net.Conn) {
	from := source(c.RemoteAddr())
	turn, why := s.limits.take(from, time.Now())
	if why != "" {
		_ = c.Close()
		s.refused.Add(1)
		s.seldom.Do(func() {
			s.options.Log.Warn("connections refused", zap.Uint64("count", s.refused.Swap(0)),
				zap.String("source", c.RemoteAddr().String()), zap.String("why", why))
		})
		return
	}
	counted := &countedConn{Conn: c, turn: turn, release: sync.OnceFunc(func() { s.limits.give(from) })}
	s.handshakes.Go(func() { s.handshake(counted) })
}

// handshake hands a connection to the HTTP server when it is through. A client
// that fails or dawdles is cut off.
func (s *Server) handshake(c net.Conn) {
	ctx, cancel := context.WithTimeout(s.ctx, s.options.HandshakeTimeout)
	defer cancel()
	t := tls.Server(c, s.config)
	if err := t.HandshakeContext(ctx); err != nil {
		s.refuse(c, err)
		_ = c.Close()
		return
	}
	if t.ConnectionState().NegotiatedProtocol == acmeProtocol {
		_ = t.SetWriteDeadline(time.Now().Add(time.Second))
		_ = t.Close() // a validation ends with its handshake (RFC 8737, section 3)
		return
	}
	if !s.ready.put(s.ctx, t) {
		_ = c.Close()
	}
}

// refuse notes a failed handshake, and tells a plain HTTP client what it did.
func (s *Server) refuse(c net.Conn, err error) {
	if plain, ok := errors.AsType[tls.RecordHeaderError](err); ok && plain.Conn != nil && httpLike(plain.RecordHeader) {
		_ = plain.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(plain.Conn, plainAnswer)
	}
	s.seldom.Do(func() {
		s.options.Log.Info("handshake failed", zap.String("source", c.RemoteAddr().String()), zap.Error(err))
	})
}

// httpLike reports whether the first bytes are an HTTP method's.
func httpLike(b [5]byte) bool {
	switch string(b[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}

// A queue is the listener that the HTTP server sees: its connections have their
// handshake behind them.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	close func()
}

func newQueue(addr net.Addr) *queue {
	done := make(chan struct{})
	return &queue{addr: addr, conns: make(chan net.Conn), done: done, close: sync.OnceFunc(func() { close(done) })}
}

// put waits until the HTTP server takes c, and reports whether it did.
func (q *queue) put(ctx context.Context, c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
	case <-ctx.Done():
	}
	return false
}

// Accept implements [net.Listener].
func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (q *queue) Close() error {
	q.close()
	return nil
}

// Addr implements [net.Listener].
func (q *queue) Addr() net.Addr { return q.addr }
