package main

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/audit"
)

// What a stranger sent stands in the log and comes to an operator's terminal: it
// must not be able to write there what it wants.
func TestARecordCannotMoveTheCursor(t *testing.T) {
	const bad = "a\x1b]0;owned\x07\u009b2J\r\n\u202eb\x00\xff"
	l, err := audit.Encode(audit.Record{
		Prev: hex.EncodeToString(make([]byte, 32)), Time: time.Now(), Event: "enroll", Outcome: "refused", Actor: audit.Actor{Kind: "device", Source: bad},
		Object: audit.Object{"client": audit.Object{"agent": bad, "traits": []string{bad}}, "subject": bad, "transaction": bad, "why": bad, "reasons": []any{audit.Object{"rule": bad, "saw": bad, "say": bad}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	printRecord(&out, string(l.Raw))
	printClients(&out, operator.ClientReport{Old: 1, Clients: []operator.ClientUse{{Profile: bad, Subject: bad, Source: bad, Agent: bad}}})
	printCertificate(&out, operator.Certificate{Subject: bad})
	for _, r := range out.String() {
		if r != '\n' && r != '\t' && (r < ' ' || r > '~') {
			t.Errorf("%q reaches the terminal", r)
		}
	}
	if !strings.Contains(out.String(), `a\x1b]0;owned`) || shown("Müller, O=Corp") != "Müller, O=Corp" {
		t.Errorf("it is not shown as it is:\n%s", out.String())
	}
}
