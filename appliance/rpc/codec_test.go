package rpc

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/status"
)

// roundTrip fuzzes a message: what is read is written again with the same octets.
// The seeds have to be read as they were written.
func roundTrip[T any](f *testing.F, encode func(*link.Encoder, T), decode func(*link.Decoder) T, seeds ...T) {
	f.Helper()
	for _, want := range seeds {
		e := new(link.Encoder)
		encode(e, want)
		d := link.NewDecoder(e.Body())
		if got := decode(d); d.Err() != nil || !reflect.DeepEqual(want, got) {
			f.Errorf("written %+v, read %+v: %v", want, got, d.Err())
		}
		f.Add(e.Body())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := link.NewDecoder(data)
		v := decode(d)
		if err := d.Err(); err != nil {
			if !errors.Is(err, link.ErrProtocol) {
				t.Errorf("%x: %v", data, err)
			}
			return
		}
		e := new(link.Encoder)
		if encode(e, v); !bytes.Equal(e.Body(), data) {
			t.Errorf("%x is read, and written as %x", data, e.Body())
		}
	})
}

func FuzzRequest(f *testing.F) {
	roundTrip(f, encodeRequest, decodeRequest,
		protocol.Request{Arrived: time.Unix(0, 0)},
		protocol.Request{Protocol: "scep", Profile: "wifi", Source: "192.0.2.7:4711", Arrived: time.Unix(1_800_000_000, 999_999_999), Proof: protocol.Proof{
			SignerCert: []byte{0x30, 0}, Digest: crypto.SHA512, SignedAttrs: []byte{0x31, 0}, Signature: []byte{1}, Envelope: []byte{2, 3}, ContentKey: make([]byte, 16),
		}, Client: protocol.Client{Agent: "a", Traits: 1<<40 | 3}},
		protocol.Request{Source: "\xff\x00", Arrived: time.Unix(-1, 1), Proof: protocol.Proof{Envelope: bytes.Repeat([]byte{7}, maxPart), ContentKey: make([]byte, maxName)}})
}

func FuzzOutcome(f *testing.F) {
	roundTrip(f, encodeOutcome, decodeOutcome,
		protocol.Outcome{},
		protocol.Outcome{RequestID: "r1", Status: protocol.Issued, Certificates: [][]byte{{0x30, 0}, {0x30, 1, 0}}},
		protocol.Outcome{RequestID: "r3", Status: protocol.Issued, CRL: bytes.Repeat([]byte{0x30}, maxPart+1)},
		protocol.Outcome{RequestID: "r2", Status: protocol.Refused, Refusal: &protocol.Refusal{Kind: protocol.BadTime, Say: "no"}},
		protocol.Outcome{Status: protocol.Pending, Refusal: &protocol.Refusal{}})
}

func FuzzRejected(f *testing.F) {
	roundTrip(f, encodeRejected, decodeRejected,
		protocol.Rejected{},
		protocol.Rejected{Protocol: "scep", Profile: "wifi", Source: "192.0.2.7:1", Operation: "GetCACaps", Kind: protocol.NotFound, Why: "w", Transaction: "t",
			MessageType: "19", MessageDigest: strings.Repeat("0", 64), Bytes: 1 << 40, Served: true, NextCA: "2027",
			Client: protocol.Client{Agent: strings.Repeat("x", protocol.MaxAgent), Traits: protocol.TraitSHA1}},
		protocol.Rejected{Operation: strings.Repeat("x", maxPart), Bytes: -1})
}

func FuzzService(f *testing.F) {
	roundTrip(f, encodeService, decodeService,
		protocol.Service{},
		protocol.Service{Profile: "wifi", Capabilities: []string{"AES", ""}, Generations: []protocol.Generation{
			{Name: "first", RASign: []byte{1}, RADecrypt: []byte{2}, CA: []byte{3}, Chain: [][]byte{{4}, {5}}}, {Name: "2027", CA: []byte{6}}}, Next: "2027",
			Digests: []crypto.Hash{crypto.SHA256, crypto.SHA1}, Ciphers: []string{"AES-128-CBC"}, LegacySHA1: true, LegacyDES3: true, AnySignerKey: true, PasswordRecipient: true},
		protocol.Service{CAFirst: true, NoRoot: true, ReplyChain: true, NoFailInfoText: true})
}

func FuzzFacts(f *testing.F) {
	roundTrip(f, encodeFacts, decodeFacts,
		HolderFacts{},
		HolderFacts{Serial: "0123", Label: "l", Keys: []KeyFact{{Name: "ca", Purpose: "ca", SPKI: []byte{0x30, 0}}, {}}})
}

func FuzzStatus(f *testing.F) {
	roundTrip(f, encodeStatus, decodeStatus,
		HolderStatus{},
		HolderStatus{Operations: 1<<64 - 1, Failures: 127, Trouble: "hung", Refused: []string{"a certificate", ""}, Lost: 128})
}

func FuzzManifest(f *testing.F) {
	roundTrip(f, encodeManifest, decodeManifest,
		manifestCall{}, manifestCall{Manifest: []byte("00  a\n"), Note: []byte("note\n")},
		manifestCall{Manifest: bytes.Repeat([]byte{'a'}, maxPart+1), Note: bytes.Repeat([]byte{'n'}, maxNote)})
}

func FuzzHead(f *testing.F) {
	head := audit.Head{Size: 300}
	head.Prev[0], head.Root[31] = 1, 2
	roundTrip(f, encodeHead, decodeHead, audit.Head{}, head, audit.Head{Size: 1<<64 - 1})
}

func FuzzKeyID(f *testing.F) {
	roundTrip(f, func(e *link.Encoder, id KeyID) { e.Bytes(id[:]) }, decodeKeyID, KeyID{}, KeyID{1, 31: 2})
}

// logLines are the first n lines of a log.
func logLines(t testing.TB, n int) []audit.Line {
	t.Helper()
	var chain audit.Chain
	var all []audit.Line
	for range n {
		h := chain.Head()
		l, err := audit.Encode(audit.Record{
			Seq: h.Size, Prev: hex.EncodeToString(h.Prev[:]), Time: time.Unix(1_800_000_000, 0), Boot: "b", Event: "note", Outcome: "ok", Actor: audit.Actor{Kind: "system"},
		})
		if err == nil {
			err = chain.Step(l)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func FuzzLines(f *testing.F) {
	for _, n := range []int{0, 1, 3} {
		want := logLines(f, n)
		body := encodeLines(want).Body()
		got, err := decodeLines(link.NewDecoder(body))
		if err != nil || len(got) != n {
			f.Errorf("%d of %d lines are read: %v", len(got), n, err)
		}
		for i := range got {
			if got[i].Hash() != want[i].Hash() {
				f.Errorf("line %d is another one", i)
			}
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		lines, err := decodeLines(link.NewDecoder(data))
		if err != nil {
			return
		}
		if again := encodeLines(lines).Body(); !bytes.Equal(again, data) {
			t.Errorf("%x is read, and written as %x", data, again)
		}
		for _, l := range lines {
			again, err := audit.Encode(l.Record)
			if err != nil || !bytes.Equal(again.Raw, l.Raw) {
				t.Errorf("%q is read, and written as %q: %v", l.Raw, again.Raw, err)
			}
		}
	})
}

// What is beyond a bound is not read, and neither is a message that is cut off or
// has an octet more.
func TestBoundsOfMessages(t *testing.T) {
	bad := func(what string, e *link.Encoder, decode func(*link.Decoder)) {
		t.Helper()
		d := link.NewDecoder(e.Body())
		if decode(d); !errors.Is(d.Err(), link.ErrProtocol) {
			t.Errorf("%s is read: %v", what, d.Err())
		}
	}
	request := func(d *link.Decoder) { decodeRequest(d) }
	for what, r := range map[string]protocol.Request{
		"a long profile":     {Profile: strings.Repeat("x", maxName+1)},
		"a long source":      {Source: strings.Repeat("x", maxName+1)},
		"a long envelope":    {Proof: protocol.Proof{Envelope: make([]byte, maxPart+1)}},
		"a long certificate": {Proof: protocol.Proof{SignerCert: make([]byte, maxPart+1)}},
		"a long content key": {Proof: protocol.Proof{ContentKey: make([]byte, maxName+1)}},
		"a hash beyond all":  {Proof: protocol.Proof{Digest: 256}},
	} {
		e := new(link.Encoder)
		encodeRequest(e, r)
		bad(what, e, request)
	}
	e := new(link.Encoder)
	encodeOutcome(e, protocol.Outcome{Certificates: make([][]byte, maxCerts+1)})
	bad("many certificates", e, func(d *link.Decoder) { decodeOutcome(d) })
	e = new(link.Encoder)
	encodeService(e, protocol.Service{Generations: make([]protocol.Generation, maxGenerations+1)})
	bad("many generations", e, func(d *link.Decoder) { decodeService(d) })
	e = new(link.Encoder)
	encodeFacts(e, HolderFacts{Keys: make([]KeyFact, maxList+1)})
	bad("many keys", e, func(d *link.Decoder) { decodeFacts(d) })

	whole := new(link.Encoder)
	encodeRequest(whole, protocol.Request{Protocol: "scep", Profile: "wifi", Arrived: time.Unix(1, 1), Proof: protocol.Proof{SignerCert: []byte{1}}})
	for n := range whole.Body() {
		d := link.NewDecoder(whole.Body()[:n])
		if decodeRequest(d); !errors.Is(d.Err(), link.ErrProtocol) {
			t.Errorf("%d of %d octets are read", n, len(whole.Body()))
		}
	}
	whole.Raw([]byte{0})
	bad("an octet more", whole, request)
}

// A key or a head is named in full: no shorter octets are taken for one with
// zeros behind.
func TestAShortSumIsNone(t *testing.T) {
	for _, n := range []int{0, 1, 31} {
		e := new(link.Encoder)
		e.Bytes(make([]byte, n))
		d := link.NewDecoder(e.Body())
		if decodeKeyID(d); !errors.Is(d.Err(), link.ErrProtocol) {
			t.Errorf("a key's name of %d octets is read", n)
		}
		e = new(link.Encoder)
		e.Uint(1)
		e.Bytes(make([]byte, n))
		e.Bytes(make([]byte, 32))
		d = link.NewDecoder(e.Body())
		if decodeHead(d); !errors.Is(d.Err(), link.ErrProtocol) {
			t.Errorf("a head with a hash of %d octets is read", n)
		}
	}
}

func FuzzSignCRL(f *testing.F) {
	roundTrip(f, encodeSignCRL, decodeSignCRL, signCRLCall{}, signCRLCall{"demo", []byte{0x30, 0}, 1 << 40}, signCRLCall{"", make([]byte, 1<<17), 0})
}

func FuzzQuestion(f *testing.F) {
	roundTrip(f, encodeQuestion, decodeQuestion, question{},
		question{"demo", status.CertID{Hash: crypto.SHA256, NameHash: make([]byte, 32), KeyHash: make([]byte, 64), Serial: strings.Repeat("f", 64)}})
}

func FuzzStatusList(f *testing.F) {
	day := time.Unix(1_800_000_000, 0).UTC()
	roundTrip(f, encodeList, decodeList,
		status.List{Answer: status.Answer{ThisUpdate: time.Unix(0, 0).UTC(), NextUpdate: time.Unix(-1, 0).UTC()}},
		status.List{Answer: status.Answer{DER: []byte{0x30, 0}, ThisUpdate: day, NextUpdate: day.Add(time.Hour)}, Number: 7})
}

// Each error that a caller tells apart is one still behind the link, and no other.
func TestEachFaultKeepsItsMeaning(t *testing.T) {
	for i, known := range faults {
		got := fromFault(toFault(known))
		for j, other := range faults {
			if errors.Is(got, other) != (i == j) {
				t.Errorf("%v is %v behind the link: %v", known, other, got)
			}
		}
	}
}
