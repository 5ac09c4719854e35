package rpc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/hsm/issuer"
)

// Holder is the authority's view of the keyholder's process. It feeds it the log:
// what is appended while the keyholder is away, it is fed when it is back, before
// anything else is asked of it. It implements [audit.Marker],
// [audit.CheckpointSigner] and [issuer.Signer].
type Holder struct {
	c    *link.Client
	scan func(from uint64, fn func(audit.Line) error) error
	log  *zap.Logger

	mu      sync.Mutex
	live    *link.Client  // level with the log; nil: away, or being fed what it missed
	level   chan struct{} // closed while live is set
	queue   []audit.Line  // durable, and sent before the next call, or after a moment
	late    *time.Timer   // sends the queue where no call does
	started bool          // the log is open
	known   uint64        // lines of the log that are durable
	opened  uint64        // lines that it was said to know of when the log was opened, which has them
	refused error         // what it said of a line that does not continue its chain: for good
}

var _ LogKeys = (*Holder)(nil)

// HolderOptions are what [NewHolder] needs.
type HolderOptions struct {
	Link link.ClientOptions // Role, Up and Down are set here
	Scan func(from uint64, fn func(audit.Line) error) error
}

// NewHolder connects.
func NewHolder(o HolderOptions) *Holder {
	h := &Holder{scan: o.Scan, log: o.Link.Log, level: make(chan struct{})}
	h.late = time.AfterFunc(time.Hour, h.flush)
	if h.log == nil {
		h.log = zap.NewNop()
	}
	o.Link.Role, o.Link.Up, o.Link.Down = RoleKeyholder, h.up, h.down
	h.c = link.NewClient(o.Link)
	return h
}

// Close sends what is left, and ends the link.
func (h *Holder) Close() error {
	h.late.Stop()
	h.flush()
	return h.c.Close()
}

// Ready waits until the keyholder answers.
func (h *Holder) Ready(ctx context.Context) error { return h.c.Ready(ctx) }

// up brings a keyholder that is new, or was away, level with the log.
func (h *Holder) up(ctx context.Context, c *link.Client) error {
	h.mu.Lock()
	started := h.started
	h.mu.Unlock()
	if !started { // the log will ask where it stands when it is opened
		h.setLive(c)
		return nil
	}
	err := h.catchUp(ctx, c)
	if err != nil {
		h.log.Error("the keyholder is not level with the log", zap.Error(err))
	}
	if errors.Is(err, ErrLine) { // for good: another connection would not help
		return nil
	}
	return err
}

// seenWithin bounds how long a keyholder that said hello may take to say where it
// stands.
const seenWithin = 10 * time.Second

func (h *Holder) catchUp(ctx context.Context, c *link.Client) error {
	ask, cancel := context.WithTimeout(ctx, seenWithin)
	next, seen, what, err := h.seen(ask, c)
	cancel()
	if err != nil {
		return err
	}
	for {
		h.mu.Lock()
		known := h.known
		if seen > max(known, h.opened) || next > known {
			h.refused = fmt.Errorf("%w: the log has %d lines, and the keyholder knows of %d: %s", ErrLine, known, max(seen, next), what)
		}
		if next == known || h.refused != nil {
			if h.refused == nil {
				h.makeLive(c) // under the lock: no line comes in between
			}
			h.mu.Unlock()
			return h.refused
		}
		h.mu.Unlock()
		if next, err = h.feed(c, next, known); err != nil {
			return err
		}
	}
}

var errEnough = errors.New("rpc: enough")

// feed sends the lines from next to size, and returns where it came to.
func (h *Holder) feed(c *link.Client, next, size uint64) (uint64, error) {
	var batch []audit.Line
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := tell(c, batch)
		next, batch = next+uint64(len(batch)), nil
		return err
	}
	err := h.scan(next, func(l audit.Line) error {
		if l.Record.Seq >= size {
			return errEnough
		}
		if batch = append(batch, l); len(batch) == 256 {
			return flush()
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err = errors.Join(err, flush()); err == nil && next != size {
		err = fmt.Errorf("rpc: the log on disk ends before line %d", size)
	}
	return next, err
}

// tell sends lines.
func tell(c *link.Client, batch []audit.Line) error {
	for _, t := range messages(batch) {
		if err := c.Tell(t.Verb, t.Message); err != nil {
			return err
		}
	}
	return nil
}

// messages are lines in messages of a bounded size.
func messages(batch []audit.Line) (all []link.Told) {
	for len(batch) > 0 {
		n, size := 0, 0
		for n < len(batch) && (n == 0 || size+len(batch[n].Raw) <= maxLines) {
			size += len(batch[n].Raw)
			n++
		}
		all = append(all, link.Told{Verb: verbFollow, Message: encodeLines(batch[:n])})
		batch = batch[n:]
	}
	return all
}

func (h *Holder) setLive(c *link.Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.makeLive(c)
}

func (h *Holder) makeLive(c *link.Client) {
	if h.live == nil {
		close(h.level)
	}
	h.live = c
}

func (h *Holder) makeAway() {
	if h.live != nil {
		h.live, h.level = nil, make(chan struct{})
	}
	h.queue = nil // it is in the log, and is fed from there
}

func (h *Holder) down(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.makeAway()
	if err := fromFault(why); errors.Is(err, ErrLine) && h.refused == nil {
		h.refused = err
	}
}

// client waits until the keyholder is level with the log.
func (h *Holder) client(ctx context.Context) (*link.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		h.mu.Lock()
		c, level, refused := h.live, h.level, h.refused
		h.mu.Unlock()
		switch {
		case refused != nil:
			return nil, refused
		case c != nil:
			return c, nil
		}
		select {
		case <-level:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: the keyholder: %w", link.ErrDown, ctx.Err())
		}
	}
}

// patience is how long a request waits for a keyholder that is away: a device
// that gets 503 tries again, later than one that waits.
const patience = 2 * time.Second

func (h *Holder) call(ctx context.Context, v link.Verb, e *link.Encoder) (*link.Decoder, error) {
	c, err := h.client(ctx)
	if err != nil {
		return nil, err
	}
	d, err := h.callWith(ctx, c, v, e)
	if err != nil {
		return nil, fromFault(err)
	}
	return d, nil
}

// callWith sends the queue with the call. The lock keeps what is appended meanwhile
// behind it; it is given back before the answer is waited for.
func (h *Holder) callWith(ctx context.Context, c *link.Client, v link.Verb, e *link.Encoder) (*link.Decoder, error) {
	h.mu.Lock()
	var told []link.Told
	if h.live == c {
		told, h.queue = messages(h.queue), nil
	}
	sent := sync.OnceFunc(h.mu.Unlock)
	defer sent()
	return c.CallAfter(ctx, v, e, sent, told...)
}

func (h *Holder) seen(ctx context.Context, c *link.Client) (next, seen uint64, what string, err error) {
	d, err := c.Call(ctx, verbSeen, new(link.Encoder))
	if err != nil {
		return 0, 0, "", fromFault(err)
	}
	next, seen, what = d.Uint(), d.Uint(), d.String(maxName)
	return next, seen, what, d.Err()
}

// Next implements [audit.Follower]. The log asks it when it is opened.
func (h *Holder) Next(ctx context.Context) (uint64, error) {
	c, err := h.client(ctx)
	if err != nil {
		return 0, err
	}
	next, _, _, err := h.seen(ctx, c)
	if err != nil {
		return 0, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known = next; h.live != c {
		return 0, link.ErrGone
	}
	h.started = true
	return next, nil
}

// Seen implements [audit.Marker].
func (h *Holder) Seen(ctx context.Context) (uint64, string, error) {
	c, err := h.client(ctx)
	if err != nil {
		return 0, "", err
	}
	_, seen, what, err := h.seen(ctx, c)
	if err == nil {
		h.mu.Lock()
		h.opened = seen
		h.mu.Unlock()
	}
	return seen, what, err
}

// Bounds of what waits for the next call: octets, lines, and time. A line that the
// keyholder does not take is known that much later, and before anything is signed.
const (
	maxQueue   = 64
	queueFor   = 50 * time.Millisecond
	queueBytes = 256 << 10
)

// send sends the queue. The caller holds the lock.
func (h *Holder) send() {
	if h.live == nil || len(h.queue) == 0 {
		return
	}
	batch := h.queue
	h.queue = nil
	if err := tell(h.live, batch); err != nil {
		h.makeAway()
	}
}

func (h *Holder) flush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.send()
}

// Follow implements [audit.Follower]. The lines are durable: a keyholder that is
// away gets them later. One that is there gets them before the next call, in one
// wake-up with it.
func (h *Holder) Follow(_ context.Context, batch []audit.Line) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refused != nil {
		return h.refused
	}
	h.known += uint64(len(batch))
	if h.live == nil {
		return nil
	}
	if len(h.queue) == 0 {
		h.late.Reset(queueFor)
	}
	h.queue = append(h.queue, batch...)
	size := 0
	for _, l := range h.queue {
		size += len(l.Raw)
	}
	if len(h.queue) >= maxQueue || size >= queueBytes {
		h.send()
	}
	return nil
}

// SignCertificate implements [issuer.Signer].
func (h *Holder) SignCertificate(ctx context.Context, name string, tbs []byte, intent uint64) ([]byte, error) {
	e := link.Sized(64 + len(tbs))
	e.String(name)
	e.Bytes(tbs)
	e.Uint(intent)
	d, err := h.call(ctx, verbSignCertificate, e)
	if errors.Is(err, link.ErrDown) { // nobody was asked
		return nil, fmt.Errorf("%w: %w", issuer.ErrNotSigned, err)
	}
	if err != nil {
		return nil, err
	}
	sig := d.Bytes(maxSignature)
	return sig, d.Err()
}

// SignCheckpoint implements [audit.CheckpointSigner].
func (h *Holder) SignCheckpoint(ctx context.Context, head audit.Head) ([]byte, error) {
	e := link.Sized(128)
	encodeHead(e, head)
	d, err := h.call(ctx, verbSignCheckpoint, e)
	if err != nil {
		return nil, err
	}
	note := d.Bytes(maxNote)
	return note, d.Err()
}

// Facts implements [LogKeys].
func (h *Holder) Facts(ctx context.Context) (HolderFacts, error) {
	d, err := h.call(ctx, verbFacts, new(link.Encoder))
	if err != nil {
		return HolderFacts{}, err
	}
	f := decodeFacts(d)
	return f, d.Err()
}

// Status implements [LogKeys].
func (h *Holder) Status(ctx context.Context) (HolderStatus, error) {
	d, err := h.call(ctx, verbStatus, new(link.Encoder))
	if err != nil {
		return HolderStatus{}, err
	}
	s := decodeStatus(d)
	return s, d.Err()
}
