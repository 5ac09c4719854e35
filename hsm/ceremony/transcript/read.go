package transcript

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/postern-pki/postern/audit"
)

// A Step is a step of a transcript: its two records. The second one is empty if
// the ceremony ended, or was interrupted, before it.
type Step struct {
	Name, Of   string
	Begin, End audit.Record
}

// Done reports whether the step ended well.
func (s Step) Done() bool { return s.End.Outcome == End }

// String names the step as a plan's step does.
func (s Step) String() string { return strings.TrimSpace(s.Name + " " + s.Of) }

// A Resumption is where an interrupted ceremony went on.
type Resumption struct {
	Record audit.Record
	Undone []Step // what did not count any more, in order; the last may have failed, or not ended
}

// A History is what a transcript says was done.
type History struct {
	Steps       []Step // what counts, in order; only the last one may be one that is not done
	Resumptions []Resumption
	First, Last audit.Record
	Records     uint64
	Torn        int // bytes of an unfinished line that were cut

	chain audit.Chain
}

// Done returns the steps that count and ended well.
func (h History) Done() []Step {
	if n := len(h.Steps); n > 0 && !h.Steps[n-1].Done() {
		return h.Steps[:n-1]
	}
	return h.Steps
}

// ErrOpen says that a ceremony did not come to its end.
var ErrOpen = errors.New("the ceremony was not closed")

// closing is the last step of every ceremony.
const closing = "close"

// Closed reads the transcript of a ceremony that came to its end: whole lines that
// form one chain, and a last step that closed it. Nothing is said of what was done.
func Closed(raw []byte) (History, error) {
	h, err := Read(raw)
	if err != nil {
		return h, err
	}
	n := len(h.Steps)
	switch {
	case len(raw) == 0 || raw[len(raw)-1] != '\n':
		return h, fmt.Errorf("%w: its last line is not whole", ErrOpen)
	case n == 0 || h.Steps[n-1].Name != closing || !h.Steps[n-1].Done() || h.Last.Seq != h.Steps[n-1].End.Seq:
		return h, fmt.Errorf("%w: it has %d records", ErrOpen, h.Records)
	}
	return h, nil
}

// Read reads a transcript's lines: each has to continue the chain, of one and the same
// ceremony, and the records of steps have to come in pairs.
func Read(raw []byte) (History, error) {
	var h History
	for i, text := range bytes.SplitAfter(raw, []byte("\n")) {
		if len(text) == 0 {
			break // after the last line's LF
		}
		line, err := audit.ParseLine(text)
		if err == nil {
			err = h.chain.Step(line)
		}
		if err == nil {
			err = h.take(line.Record)
		}
		if err != nil {
			return h, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	return h, nil
}

func (h *History) take(r audit.Record) error {
	name, ours := strings.CutPrefix(r.Event, eventPrefix)
	if !ours || r.Actor.Kind != actorKind {
		return fmt.Errorf("event %q is none of a ceremony", r.Event)
	}
	if h.Records == 0 {
		h.First = r
	} else if err := h.follows(r, name == Resume); err != nil {
		return err
	}
	h.Last, h.Records = r, h.Records+1
	if name == Resume {
		return h.resume(r)
	}
	last := len(h.Steps) - 1
	open := last >= 0 && h.Steps[last].End.Event == ""
	failed := last >= 0 && !open && !h.Steps[last].Done()
	switch {
	case failed:
		return fmt.Errorf("step %q failed, and only a resumption may follow it", h.Steps[last])
	case r.Outcome == Begin && !open:
		h.Steps = append(h.Steps, Step{Name: name, Of: r.Object.String("of"), Begin: r})
		return nil
	case (r.Outcome == End || r.Outcome == Exception) && open && h.Steps[last].Name == name:
		h.Steps[last].End = r
		return nil
	case r.Outcome == Exception && !open:
		h.Steps = append(h.Steps, Step{Name: name, Of: r.Object.String("of"), Begin: r, End: r})
		return nil
	}
	return fmt.Errorf("%s of step %q is out of order", r.Outcome, name)
}

// follows compares a record with the one before it. The machine may have been
// started anew where a ceremony was resumed, and nowhere else.
func (h *History) follows(r audit.Record, resumed bool) error {
	l := h.Last
	again := resumed && r.Boot != l.Boot
	if r.Request != l.Request || r.Actor != l.Actor || !again && (r.Boot != l.Boot || r.Mono < l.Mono) {
		return fmt.Errorf("not of the same ceremony as the line before, or earlier than it")
	}
	return nil
}

// resume takes back what does not count any more: a step that did not end well,
// and those that have to be done again with it.
func (h *History) resume(r audit.Record) error {
	at := r.Object.Int("at")
	if r.Outcome != End || at < 0 || at > int64(len(h.Done())) || len(h.Steps) == 0 {
		return fmt.Errorf("it goes on at step %d, which was not reached", at)
	}
	undone := append([]Step{}, h.Steps[at:]...)
	h.Steps = h.Steps[:at:at]
	h.Resumptions = append(h.Resumptions, Resumption{r, undone})
	return nil
}
