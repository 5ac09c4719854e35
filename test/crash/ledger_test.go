package crash_test

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"maps"
	"testing"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/test/site"
)

// hexSerial is a serial number as the appliance writes it.
func hexSerial(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// An intent is what the log says of one serial number.
type intent struct {
	serial, challenge string
	outcome           string // "" while it is open
}

// A ledger reads the log beside the appliance, in its own way.
type ledger struct {
	next         uint64
	intents      map[uint64]*intent
	open         map[uint64]*intent
	bySerial     map[string]*intent
	spent        map[string]*intent // by challenge: the last intent
	due          map[string]bool    // by serial
	acknowledged map[string]string  // by serial: the challenge
	unknown      int
	number, list uint64 // of the last CRL, and of its intent
}

func newLedger() *ledger {
	return &ledger{
		intents: map[uint64]*intent{}, open: map[uint64]*intent{}, bySerial: map[string]*intent{},
		spent: map[string]*intent{}, due: map[string]bool{}, acknowledged: map[string]string{},
	}
}

// check holds what the devices were told against the log and the index of a
// service that was started and does nothing.
func (l *ledger) check(t *testing.T, s *site.Site, fresh map[string]string) {
	t.Helper()
	maps.Copy(l.acknowledged, fresh)
	for _, line := range lines(t, s, l.next) {
		l.read(t, line)
	}
	for seq, i := range l.open {
		t.Errorf("the intent of record %d, serial %s, was not closed by the start", seq, i.serial)
	}
	for serial, challenge := range l.acknowledged {
		i := l.bySerial[serial]
		if i == nil || i.outcome != "issued" || i.challenge != challenge {
			t.Errorf("acknowledged %s for challenge %s, and the log has %+v", serial, challenge, i)
		}
	}
	for _, i := range l.bySerial {
		if (i.outcome == "unknown") != l.due[i.serial] {
			t.Errorf("serial %s is %s, to be revoked: %v", i.serial, i.outcome, l.due[i.serial])
		}
	}
	for serial := range fresh { // one: at the end the whole index is made anew
		show(t, s, serial)
		break
	}
}

// read takes the next line.
func (l *ledger) read(t *testing.T, line audit.Line) {
	t.Helper()
	r := line.Record
	if r.Seq != l.next {
		t.Fatalf("record %d where %d should be", r.Seq, l.next)
	}
	l.next++
	if in, ok := audit.IntentOf(line); ok {
		i := &intent{serial: in.Serial, challenge: in.Challenge}
		if l.bySerial[in.Serial] != nil {
			t.Errorf("record %d: serial %s has two intents", r.Seq, in.Serial)
		}
		if was := l.spent[in.Challenge]; in.Challenge != "" && was != nil && was.outcome != "failed" && was.outcome != "unknown" {
			t.Errorf("record %d: challenge %s is spent again, after serial %s, %q", r.Seq, in.Challenge, was.serial, was.outcome)
		}
		l.intents[r.Seq], l.open[r.Seq], l.bySerial[in.Serial], l.spent[in.Challenge] = i, i, i, i
	}
	if in, ok := audit.CRLIntentOf(line); ok {
		if in.Number <= l.number {
			t.Errorf("record %d intends CRL %d after %d", r.Seq, in.Number, l.number)
		}
		l.number, l.list = in.Number, r.Seq
	}
	if seq, outcome, ok := audit.OutcomeOf(line); ok && r.Event == "crl" {
		if seq != l.list || uint64(r.Object.Int("number")) != l.number {
			t.Errorf("record %d closes %d of CRL %d, %s; the last is %d by %d", r.Seq, seq, r.Object.Int("number"), outcome, l.number, l.list)
		}
	} else if ok {
		i := l.intents[seq]
		if i == nil || i.outcome != "" {
			t.Errorf("record %d closes %d, which is %+v", r.Seq, seq, i)
			return
		}
		if r.Object.String("serial") != i.serial {
			t.Errorf("record %d closes %d for another serial", r.Seq, seq)
		}
		if i.outcome = outcome; outcome == "unknown" {
			l.unknown++
		}
		delete(l.open, seq)
	}
	if r.Event == "revocation" && r.Outcome == "due" {
		l.due[r.Object.String("serial")] = true
	}
}

// show asks the index, by the operator's tool.
func show(t *testing.T, s *site.Site, serial string) {
	t.Helper()
	out, errOut, code := s.Postern(t.Context(), nil, "cert", "show", serial, "--output", "json")
	var c struct {
		Serial, State string
		RevocationDue bool `json:"revocation_due"`
	}
	if err := json.Unmarshal([]byte(out), &c); code != 0 || err != nil || c.Serial != serial || c.State != "issued" || c.RevocationDue {
		t.Errorf("postern cert show %s: exit %d: %s%s", serial, code, out, errOut)
	}
}
