// Package bundle makes what an auditor is handed, and verifies it: a part of the log
// that ends at a signed checkpoint, with everything that is needed to check it, in one
// tar whose list of files is signed by the audit key in the token.
//
// A bundle is a folder in a tar of the USTAR format, in the order of the names' octets,
// so that list, signature, checkpoint and the state before the first record come
// before the records:
//
//	MANIFEST, MANIFEST.p7s        see package manifest
//	VERIFY.txt, verify.sh         how to check it without us
//	audit.pem                     the certificate of the audit key
//	bundle.json                   see [Info]
//	ceremony/                     transcripts
//	certificates/issued.pem       every certificate that the records name as issued, in their order
//	certificates/issuers.pem      of whom
//	checkpoints/SIZE.note         the signed checkpoint of the last record
//	consistency.json              see [Consistency]: only after an earlier bundle
//	crls/, policy/                lists and profiles whose SHA-256 the records name
//	segments/FIRST.jsonl          the records, the segments of the log as they are on the disk; the first and last may be parts
//
// # What a caller may rely on
//
// Two exports of one range of one log are the same octets but for MANIFEST.p7s, as
// long as transcripts, profiles, lists and program are the same. [Export] makes none of a
// log that is damaged. [Verify] accepts no octet that the manifest does not list, no
// record that the checkpoint does not cover, and names the first place that is not as
// it should be. Both need memory for the files that are not records or certificates,
// which have bounds.
//
// # What it does not protect against
//
// A log proves what was written, not that what was written is true. Who has the audit
// key can write another log; only who kept an earlier bundle or checkpoint finds out.
package bundle

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/audit/jcs"
)

// The files that every bundle has beside records and checkpoint.
const (
	fileManifest    = "MANIFEST"
	fileSignature   = "MANIFEST.p7s"
	fileText        = "VERIFY.txt"
	fileScript      = "verify.sh"
	fileCertificate = "audit.pem"
	fileInfo        = "bundle.json"
	fileIssued      = "certificates/issued.pem"
	fileIssuers     = "certificates/issuers.pem"
	fileConsistency = "consistency.json"
	segmentPrefix   = "segments/"
)

// Bounds: of one file that is neither records nor certificates, in octets, and of the
// versions that are listed.
const (
	maxFile     = 16 << 20
	maxVersions = 1000
)

const (
	typeInfo        = "postern audit bundle 1"
	typeConsistency = "postern audit consistency 1"
)

// ErrForm is returned for what has not the form of a bundle's part.
var ErrForm = errors.New("bundle: not in the form of a bundle")

// Info is bundle.json, which says what the records are checked against. Hashes are hex.
type Info struct {
	Origin       string
	From, Size   uint64   // number of the first record, and how many the log has with the last
	Root         string   // of the tree of all Size records
	Prev         string   // SHA-256 of the line before the first one; zeros for none
	Frontier     []string // roots of the complete subtrees before the first record, largest first
	First, Last  string   // times of the first and last record
	Certificates uint64   // in issued.pem
	Exporter     string   // version of the program
	Versions     []Version
}

// A Version is what the service recorded of itself at a start, if it differs from the
// one before.
type Version struct {
	Seq                     uint64
	Version, Policy, Config string
}

// Consistency is consistency.json: the proof of RFC 9162, section 2.1.4, that the
// records of the earlier bundle are the first ones of this one's log.
type Consistency struct {
	Manifest string // SHA-256 of the earlier bundle's MANIFEST, hex
	Size     uint64
	Root     string // hex
	Proof    []string
}

func (i *Info) encode() ([]byte, error) {
	versions := make([]any, 0, len(i.Versions))
	for _, v := range i.Versions {
		versions = append(versions, map[string]any{"seq": int64(v.Seq), "version": v.Version, "policy": v.Policy, "config": v.Config})
	}
	return line(map[string]any{
		"type": typeInfo, "origin": i.Origin, "from": int64(i.From), "size": int64(i.Size), "root": i.Root, "prev": i.Prev, "frontier": i.Frontier,
		"first": i.First, "last": i.Last, "certificates": int64(i.Certificates), "exporter": i.Exporter, "versions": versions,
	})
}

func line(o map[string]any) ([]byte, error) {
	b, err := jcs.Append(nil, o)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return append(b, '\n'), nil
}

func object(data []byte, kind string) (audit.Object, error) {
	if len(data) == 0 || data[len(data)-1] != '\n' {
		return nil, ErrForm
	}
	v, err := jcs.Parse(data[:len(data)-1])
	o, ok := v.(map[string]any)
	if err != nil || !ok || audit.Object(o).String("type") != kind {
		return nil, fmt.Errorf("%w: it is no %q", ErrForm, kind)
	}
	return o, nil
}

// parseInfo reads the one form of bundle.json.
func parseInfo(data []byte) (*Info, error) {
	o, err := object(data, typeInfo)
	if err != nil {
		return nil, err
	}
	i := &Info{
		Origin: o.String("origin"), From: uint64(o.Int("from")), Size: uint64(o.Int("size")), Root: o.String("root"), Prev: o.String("prev"), Frontier: o.Strings("frontier"),
		First: o.String("first"), Last: o.String("last"), Certificates: uint64(o.Int("certificates")), Exporter: o.String("exporter"),
	}
	for _, v := range o.Objects("versions") {
		i.Versions = append(i.Versions, Version{uint64(v.Int("seq")), v.String("version"), v.String("policy"), v.String("config")})
	}
	if again, err := i.encode(); err != nil || string(again) != string(data) || int64(i.From) < 0 || i.From >= i.Size {
		return nil, fmt.Errorf("%w: bundle.json", ErrForm)
	}
	return i, nil
}

// start is the chain before the first record.
func (i *Info) start() (*audit.Chain, error) {
	prev, err := digest(i.Prev)
	if err != nil {
		return nil, err
	}
	var frontier [][32]byte
	for _, text := range i.Frontier {
		h, err := digest(text)
		if err != nil {
			return nil, err
		}
		frontier = append(frontier, h)
	}
	c, err := audit.ResumeChain(i.From, prev, frontier)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForm, err)
	}
	return c, nil
}

func digest(text string) (h [32]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(h) || hex.EncodeToString(b) != text {
		return h, fmt.Errorf("%w: %.80q is no SHA-256", ErrForm, text)
	}
	return [32]byte(b), nil
}

func (c *Consistency) encode() ([]byte, error) {
	return line(map[string]any{"type": typeConsistency, "manifest": c.Manifest, "size": int64(c.Size), "root": c.Root, "proof": c.Proof})
}

func parseConsistency(data []byte) (*Consistency, error) {
	o, err := object(data, typeConsistency)
	if err != nil {
		return nil, err
	}
	c := &Consistency{Manifest: o.String("manifest"), Size: uint64(o.Int("size")), Root: o.String("root"), Proof: o.Strings("proof")}
	if again, err := c.encode(); err != nil || string(again) != string(data) {
		return nil, fmt.Errorf("%w: consistency.json", ErrForm)
	}
	return c, nil
}

// check verifies the proof against the bundle's own size and root.
func (c *Consistency) check(size uint64, root tlog.Hash) error {
	first, err := digest(c.Root)
	if err != nil {
		return err
	}
	proof := make(tlog.TreeProof, 0, len(c.Proof))
	for _, text := range c.Proof {
		h, err := digest(text)
		if err != nil {
			return err
		}
		proof = append(proof, h)
	}
	if c.Size == 0 || c.Size > size {
		return fmt.Errorf("%w: consistency.json is about %d of %d records", ErrForm, c.Size, size)
	}
	if err := tlog.CheckTree(proof, int64(size), root, int64(c.Size), first); err != nil {
		return fmt.Errorf("bundle: the log does not go on from the %d records of the earlier bundle", c.Size)
	}
	return nil
}

// folder is the name of the one folder in the tar.
func folder(from, size uint64) string { return fmt.Sprintf("bundle-%012d-%012d/", from, size-1) }

const timeForm = "2006-01-02T15:04:05.000000Z"

func parseTime(text string) (time.Time, error) {
	t, err := time.Parse(timeForm, text)
	if err != nil {
		return t, fmt.Errorf("%w: %.40q is no time", ErrForm, text)
	}
	return t, nil
}
