package bundle

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/postern-pki/postern/audit"
)

const typeProof = "postern record proof 1"

// Bounds of a file with proofs, in octets, and of the records in it.
const (
	maxProof  = 16 << 20
	maxProven = 1000
)

// A Proven is a record with its inclusion proof (RFC 9162, section 2.1.3).
type Proven struct {
	Seq   uint64
	Line  []byte // with its LF
	Proof []string
}

// A Proof is records of a log, and the signed checkpoint that they are proven to be
// under: all that somebody needs who has neither the log nor a bundle.
type Proof struct {
	Origin     string
	Checkpoint string
	Records    []Proven
}

// Prove reads the records of these numbers from the log, with their proofs. It reads
// the log up to the checkpoint, which is the first one that covers all of them. Errors
// are those of [Export].
func Prove(ctx context.Context, dir string, v note.Verifier, seqs ...uint64) (*Proof, error) {
	if len(seqs) == 0 || len(seqs) > maxProven {
		return nil, fmt.Errorf("%w: a proof is of 1 to %d records", ErrRange, maxProven)
	}
	e, err := find(ctx, dir, Bound{}, Bound{Set: true, Seq: slices.Max(seqs)})
	if err != nil {
		return nil, err
	}
	_, root, err := audit.OpenCheckpoint(e.note, v)
	if err != nil {
		return nil, err
	}
	p := &Proof{Origin: v.Name(), Checkpoint: string(e.note)}
	var prover audit.Prover
	for _, seq := range seqs {
		_, _ = prover.Included(seq, e.size) // to have what it needs kept
	}
	walk := audit.NewWalk(audit.WalkOptions{Verifier: v, Notes: map[uint64]tlog.Hash{e.size: root}, Each: func(s *audit.Seen) error {
		prover.Add(s.Leaf)
		if slices.Contains(seqs, s.Seq) {
			p.Records = append(p.Records, Proven{Seq: s.Seq, Line: slices.Clone(s.Raw)})
		}
		if s.Seq+1 == e.size {
			return errEnd
		}
		return nil
	}})
	if err := walk.Folder(ctx, dir); !errors.Is(err, errEnd) {
		return nil, errors.Join(ErrRange, err)
	}
	for i := range p.Records {
		hashes, err := prover.Included(p.Records[i].Seq, e.size)
		if err != nil {
			return nil, err
		}
		p.Records[i].Proof = []string{}
		for _, h := range hashes {
			p.Records[i].Proof = append(p.Records[i].Proof, hex.EncodeToString(h[:]))
		}
	}
	return p, nil
}

// Encode is the proof as a file: one line of canonical JSON.
func (p *Proof) Encode() ([]byte, error) {
	records := make([]any, 0, len(p.Records))
	for _, r := range p.Records {
		records = append(records, map[string]any{"seq": int64(r.Seq), "line": string(r.Line), "proof": r.Proof})
	}
	return line(map[string]any{"type": typeProof, "origin": p.Origin, "checkpoint": p.Checkpoint, "records": records})
}

// ParseProof reads a file of its one form. The error is ErrForm.
func ParseProof(data []byte) (*Proof, error) {
	if len(data) > maxProof {
		return nil, fmt.Errorf("%w: it is larger than %d octets", ErrForm, maxProof)
	}
	o, err := object(data, typeProof)
	if err != nil {
		return nil, err
	}
	p := &Proof{Origin: o.String("origin"), Checkpoint: o.String("checkpoint")}
	for _, r := range o.Objects("records") {
		p.Records = append(p.Records, Proven{uint64(r.Int("seq")), []byte(r.String("line")), r.Strings("proof")})
	}
	for i := range p.Records {
		if p.Records[i].Proof == nil {
			p.Records[i].Proof = []string{}
		}
	}
	if again, err := p.Encode(); err != nil || string(again) != string(data) || len(p.Records) == 0 || len(p.Records) > maxProven {
		return nil, fmt.Errorf("%w: a record's proof", ErrForm)
	}
	return p, nil
}

// Verify checks every record of a proof, and returns them and how many records the
// checkpoint covers. The error is *BadError, or *audit.Damage for a record.
func (p *Proof) Verify(v note.Verifier) (lines []audit.Line, size uint64, err error) {
	size, root, err := audit.OpenCheckpoint([]byte(p.Checkpoint), v)
	if err != nil {
		return nil, 0, &BadError{"the checkpoint", "it does not verify with the audit certificate, for the log " + v.Name()}
	}
	for _, r := range p.Records {
		bad := func(why string) error { return &audit.Damage{Segment: "of the proof", Seq: r.Seq, Why: why} }
		l, err := audit.ParseLine(r.Line)
		if err != nil {
			return nil, 0, bad(err.Error())
		}
		var proof tlog.RecordProof
		for _, text := range r.Proof {
			h, err := digest(text)
			if err != nil {
				return nil, 0, bad(err.Error())
			}
			proof = append(proof, h)
		}
		if l.Record.Seq != r.Seq || r.Seq >= size || tlog.CheckRecord(proof, int64(size), root, int64(r.Seq), l.Leaf()) != nil {
			return nil, 0, bad("the proof does not lead from this record to the signed checkpoint")
		}
		lines = append(lines, l)
	}
	return lines, size, nil
}
