package link

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"
)

// The kinds of frame.
const (
	kindHello  = iota + 1
	kindCall   // the header's id names the call
	kindTell   // as a call, in order, answered only by a fault
	kindAnswer // to the call of that id
	kindFault  // to the call of that id; 0: to the hello
	kindCancel // the caller of that id gave up
)

// headerLen is the length of a frame's header: the number of octets behind the
// first four (32 bits), kind, verb, id (32 bits), and for a call how many milliseconds it
// may take (32 bits), all in network order.
const headerLen = 14

type frame struct {
	kind   byte
	verb   Verb
	id     uint32
	within time.Duration
	body   []byte
}

// wire is one connection: frames out under a lock, frames in by one reader.
type wire struct {
	conn net.Conn
	in   *bufio.Reader
	mu   sync.Mutex // of writing
}

func newWire(c net.Conn) *wire { return &wire{conn: c, in: bufio.NewReaderSize(c, 32<<10)} }

// outgoing is a frame to be sent. It takes over the encoder's octets.
type outgoing struct {
	kind   byte
	verb   Verb
	id     uint32
	within time.Duration
	e      *Encoder
}

func (o outgoing) bytes() ([]byte, error) {
	o.e.room()
	if o.e.Len() > MaxFrame {
		return nil, fmt.Errorf("%w: %d octets", ErrTooLong, o.e.Len())
	}
	b := o.e.b
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	b[4], b[5] = o.kind, byte(o.verb)
	binary.BigEndian.PutUint32(b[6:], o.id)
	binary.BigEndian.PutUint32(b[10:], uint32(min(o.within, longestCall).Milliseconds()))
	return b, nil
}

// send writes frames by one write, so that the other end wakes up once.
func (w *wire) send(frames ...outgoing) error {
	all := make(net.Buffers, 0, 2)
	for _, o := range frames {
		b, err := o.bytes()
		if err != nil {
			if len(frames) > 1 { // what was told would be missing
				_ = w.conn.Close()
			}
			return err
		}
		all = append(all, b)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil {
		return err
	}
	var err error
	if len(all) == 1 {
		_, err = w.conn.Write(all[0])
	} else {
		_, err = all.WriteTo(w.conn)
	}
	if err != nil { // a part may have gone: nothing that follows could be read
		_ = w.conn.Close()
	}
	return err
}

func (w *wire) fault(id uint32, f *Fault) error {
	e := Sized(16 + len(f.Text))
	e.Uint(uint64(f.Code))
	e.String(f.Text[:min(len(f.Text), maxText)])
	return w.send(outgoing{kind: kindFault, id: id, e: e})
}

func decodeFault(body []byte) (*Fault, error) {
	d := NewDecoder(body)
	code := d.Uint()
	f := &Fault{Code: Code(code), Text: d.String(maxText)}
	if code > math.MaxUint32 {
		return nil, fmt.Errorf("%w: a fault's code", ErrProtocol)
	}
	return f, d.Err()
}

// receive reads a frame. The body is the caller's.
func (w *wire) receive() (frame, error) {
	var h [headerLen]byte
	if _, err := io.ReadFull(w.in, h[:]); err != nil {
		return frame{}, err
	}
	n := binary.BigEndian.Uint32(h[:])
	if n < headerLen-4 || n > MaxFrame+headerLen-4 {
		return frame{}, fmt.Errorf("%w: a frame of %d octets", ErrProtocol, n)
	}
	f := frame{kind: h[4], verb: Verb(h[5]), id: binary.BigEndian.Uint32(h[6:]), within: time.Duration(binary.BigEndian.Uint32(h[10:])) * time.Millisecond}
	body, err := readBody(w.in, int(n)-(headerLen-4))
	f.body = body
	return f, err
}

// readBody allocates as the octets come, so that a length alone costs nothing.
func readBody(r io.Reader, n int) ([]byte, error) {
	const step = 64 << 10
	body := make([]byte, min(n, step))
	for got := 0; got < n; {
		if got == len(body) {
			body = append(body, make([]byte, min(n-got, len(body)))...)
		}
		m, err := io.ReadFull(r, body[got:])
		got += m
		if err != nil {
			return nil, fmt.Errorf("%w: a frame that is cut off: %w", ErrProtocol, err)
		}
	}
	return body, nil
}

// hello sends ours.
func (w *wire) hello(h Hello) error {
	e := Sized(128)
	h.encode(e)
	return w.send(outgoing{kind: kindHello, e: e})
}

// greeted reads the other end's hello, or its refusal.
func (w *wire) greeted(within time.Duration) (Hello, error) {
	if err := w.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		return Hello{}, err
	}
	f, err := w.receive()
	if err != nil {
		return Hello{}, err
	}
	if err := w.conn.SetReadDeadline(time.Time{}); err != nil {
		return Hello{}, err
	}
	switch f.kind {
	case kindHello:
		return decodeHello(NewDecoder(f.body))
	case kindFault:
		fault, err := decodeFault(f.body)
		if err != nil {
			return Hello{}, err
		}
		return Hello{}, fmt.Errorf("%w: %s", ErrHello, fault.Text)
	}
	return Hello{}, fmt.Errorf("%w: no hello", ErrProtocol)
}
