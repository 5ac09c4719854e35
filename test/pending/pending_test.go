package pending

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
	"github.com/postern-pki/postern/test/softhsm"
)

// profiles are the demonstration's and one in which a person vouches.
var profiles = site.Profiles + strings.NewReplacer(
	"name: demo", "name: vouched", "{mode: one-time, ttl: 30m}", "{mode: none}", "approve: automatic", "approve: manual", "same-subject", "any",
	"active_per_subject: 2", "active_per_subject: 100",
).Replace(site.Profiles[strings.Index(site.Profiles, "  - name: demo"):strings.Index(site.Profiles, "  - name: interop")])

var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var end func()
	var err error
	if bin, end, err = site.Build(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer end()
	return m.Run()
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// running makes a site that a token's failures can be told to, and starts it.
func running(t *testing.T, change ...func(string) string) (*site.Site, softhsm.Shim) {
	t.Helper()
	s, end, err := site.New(t.Context(), bin, profiles)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the service's journal:\n%s", s.Tail())
		}
		end()
	})
	shim := softhsm.NewShim(t)
	change = append(change, func(text string) string {
		return strings.Replace(text, softhsm.Module, shim.Module+"\n    sandbox: {write: ["+filepath.Dir(shim.Module)+"]}", 1)
	})
	text := string(must(os.ReadFile(s.Config()))(t))
	for _, f := range change {
		text = f(text)
	}
	if err := os.WriteFile(s.Config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, shim
}

// postern runs the operator's tool, and reads what it says in JSON.
func postern[T any](t *testing.T, s *site.Site, args ...string) (v T) {
	t.Helper()
	out, errOut, code := s.Postern(t.Context(), nil, append(args, "--output", "json")...)
	if code != 0 {
		t.Fatalf("postern %s: exit %d: %s", strings.Join(args, " "), code, errOut)
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return v
}

type waiting struct {
	ID, State, Subject, Digest, Serial, Why string
}

type list struct{ Pending []waiting }

// waits returns the one request of a name that waits, as soon as it does.
func waits(t *testing.T, s *site.Site, cn string) waiting {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var found []waiting
		for _, p := range postern[list](t, s, "pending", "list", "--profile", "vouched").Pending {
			if strings.Contains(p.Subject, "CN="+cn) {
				found = append(found, p)
			}
		}
		if len(found) == 1 {
			return found[0]
		}
		if len(found) > 1 {
			t.Fatalf("%d requests of %s wait", len(found), cn)
		}
	}
	t.Fatalf("no request of %s waits", cn)
	return waiting{}
}

// A device is one that asks and polls with the same key.
type device struct {
	*site.Device
	cn, transaction string
	key             *rsa.PrivateKey
	self, csr       []byte
}

func newDevice(t *testing.T, s *site.Site, cn string) *device {
	t.Helper()
	d := &device{cn: cn, transaction: "tx " + cn, key: must(rsa.GenerateKey(rand.Reader, 2048))(t)}
	name := pkix.Name{CommonName: cn}
	d.self = must(site.SelfSigned(d.key, name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))(t)
	d.csr = must(client.NewCSR(d.key, client.CSR{Subject: name}))(t)
	d.connect(t, s)
	return d
}

// connect is needed again after each start of the service, whose port is any.
func (d *device) connect(t *testing.T, s *site.Site) {
	t.Helper()
	d.Device = must(s.Device(t.Context(), "vouched"))(t)
}

// says is what the device is told: "pending", the serial of its certificate, or the
// failInfo and its text.
func (d *device) says(t *testing.T, messageType int) string {
	t.Helper()
	r := must(d.Request(client.Message{Type: messageType, TransactionID: d.transaction, Signer: d.self, SignerKey: d.key, CSR: d.csr}))(t)
	res, err := d.Do(t.Context(), r)
	if no, ok := errors.AsType[*client.FailError](err); ok {
		return no.Name + ": " + no.Text
	}
	if _, ok := errors.AsType[*client.PendingError](err); ok {
		return "pending"
	}
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(res.Certificate.SerialNumber.Bytes()) // as records have it, zeros in front too
}

func (d *device) wants(t *testing.T, messageType int, want string) {
	t.Helper()
	if got := d.says(t, messageType); got != want {
		t.Errorf("%s, message type %d: %q, want %q", d.cn, messageType, got, want)
	}
}

// denied is what a device is told of a request that an operator denied.
func denied(id string) string {
	return "badRequest: an operator has denied the request (request " + id + ")"
}

// Covers: S-140, S-144, S-145, S-146
func TestPollsOverARestart(t *testing.T) {
	s, _ := running(t)
	d, other := newDevice(t, s, "polls.demo.example"), newDevice(t, s, "other.demo.example")
	other.transaction = d.transaction
	if got := d.says(t, scep.CertPoll); !strings.HasPrefix(got, "badCertId: no request of this transaction is known") {
		t.Errorf("an unknown transaction: %s", got)
	}
	d.wants(t, scep.PKCSReq, "pending")
	d.wants(t, scep.PKCSReq, "pending")
	id := waits(t, s, d.cn).ID
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.Path("state", "index.db")); err != nil { // what follows is from the log alone
		t.Fatal(err)
	}
	if out, errOut, code := s.Postern(t.Context(), nil, "rebuild", "--apply"); code != 0 {
		t.Fatalf("postern rebuild: %s%s", out, errOut)
	}
	start(t, s, d, other)
	d.wants(t, scep.CertPoll, "pending")
	if got := other.says(t, scep.CertPoll); !strings.HasPrefix(got, "badRequest: the request of this transaction was signed by another key") {
		t.Errorf("another key polls: %s", got)
	}
	serial := postern[waiting](t, s, "pending", "approve", id, "--reason", "ticket 4711").Serial
	for _, typ := range []int{scep.CertPoll, scep.CertPoll, scep.PKCSReq} {
		d.wants(t, typ, serial)
	}
	if p := postern[waiting](t, s, "pending", "show", id); p.State != "issued" || p.Serial != serial {
		t.Errorf("%+v", p)
	}
	other.transaction = "tx other"
	other.wants(t, scep.PKCSReq, "pending")
	id = waits(t, s, other.cn).ID
	if p := postern[waiting](t, s, "pending", "deny", id, "--reason", "not ours"); p.State != "denied" {
		t.Errorf("%+v", p)
	}
	for _, typ := range []int{scep.CertPoll, scep.PKCSReq} {
		other.wants(t, typ, denied(id))
	}
	finish(t, s)
}

// start starts the service again, and has devices find it.
func start(t *testing.T, s *site.Site, devices ...*device) {
	t.Helper()
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		d.connect(t, s)
	}
}

// finish stops the service, whose log verifies, and whose index is what the log
// makes of it.
func finish(t *testing.T, s *site.Site) {
	t.Helper()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if r := postern[struct{ Same bool }](t, s, "rebuild", "--apply"); !r.Same {
		t.Error("an index made anew is another one")
	}
	journal := must(os.ReadFile(s.Journal()))(t)
	if bytes.Contains(journal, []byte("panic")) {
		t.Error("a panic")
	}
}

const fetchCA = `
pki --scepca --url "$URL" --caout ca.pem --raout ra.pem --outform pem
for f in ra*.pem; do
  case $(openssl x509 -in $f -noout -ext keyUsage) in *"Key Encipherment"*) cp $f enc.pem;; *) cp $f sig.pem;; esac
done
pki --gen --type rsa --size 2048 --outform pem > key.pem
pki --scep --url "$URL" --in key.pem --cacert-enc enc.pem --cacert-sig sig.pem --cacert ca.pem --interval 1 --maxpolltime 60 --outform pem --dn "CN=$CN" > cert.pem
`

// swan has strongSwan ask and poll, and returns how that ended once somebody
// decided.
func swan(t *testing.T, s *site.Site, cn string, decide func(id string)) (dir, out string, err error) {
	t.Helper()
	dir = t.TempDir()
	url := must(s.URL(t.Context(), "vouched"))(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, _, err = s.StrongSwan(t.Context(), dir, url, "", "export CN="+cn+"\n"+fetchCA)
	}()
	from := waits(t, s, cn)
	polled(t, s, from.ID)
	decide(from.ID)
	<-done
	return dir, out, err
}

// polled waits until the device has polled for a request.
func polled(t *testing.T, s *site.Site, id string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, l := range must(s.Lines(0))(t) {
			if l.Record.Outcome == "polled" && l.Record.Object.String("pending") == id && l.Record.Object.String("message_type") == "20" {
				return
			}
		}
	}
	t.Fatal("nobody polls")
}

// Covers: S-140, S-141, S-142
func TestStrongSwanPolls(t *testing.T) {
	s, _ := running(t)
	dir, out, err := swan(t, s, "swan.demo.example", func(id string) {
		postern[waiting](t, s, "pending", "approve", id, "--reason", "its number was read out")
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, errOut, code := site.Run(t.Context(), nil, "openssl", "verify", "-CAfile", s.CA(), filepath.Join(dir, "cert.pem")); code != 0 {
		t.Errorf("openssl verify: %s%s", out, errOut)
	}
	_, out, err = swan(t, s, "denied.demo.example", func(id string) {
		postern[waiting](t, s, "pending", "deny", id, "--reason", "not ours")
	})
	if err == nil || !strings.Contains(out, "polling every 1 seconds") || !strings.Contains(out, "badRequest") {
		t.Errorf("strongSwan was denied, and says %v: %s", err, out)
	}
	finish(t, s)
}

// TestKilledWhileAnApprovalIsSigned has the token hang between the intent and the
// result of an approval, and kills the service there. The serial is burnt, the
// request waits on, and is approved once more.
//
// Covers: S-149
func TestKilledWhileAnApprovalIsSigned(t *testing.T) {
	s, shim := running(t)
	d := newDevice(t, s, "killed.demo.example")
	d.wants(t, scep.PKCSReq, "pending")
	id := waits(t, s, d.cn).ID
	shim.Spoil(t, "Sign:ca", "hold", 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = s.Postern(ctx, nil, "pending", "approve", id, "--reason", "in time")
	}()
	for end := time.Now().Add(20 * time.Second); len(of(t, s, id, "intent")) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no intent is recorded")
		}
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	shim.Heal(t)
	start(t, s, d)
	if n := len(of(t, s, id, "issued")); n != 0 {
		t.Fatalf("%d certificates of an approval that was killed", n)
	}
	d.wants(t, scep.CertPoll, "pending")
	if len(of(t, s, id, "unknown")) != 1 || waits(t, s, d.cn).ID != id {
		t.Error("the intent has no outcome, or the request does not wait")
	}
	serial := postern[waiting](t, s, "pending", "approve", id, "--reason", "again").Serial
	d.wants(t, scep.CertPoll, serial)
	d.wants(t, scep.PKCSReq, serial)
	finish(t, s)
}

// of are the records of a request with an outcome.
func of(t *testing.T, s *site.Site, id, outcome string) (out []audit.Record) {
	t.Helper()
	for _, l := range must(s.Lines(0))(t) {
		if l.Record.Request == id && l.Record.Outcome == outcome {
			out = append(out, l.Record)
		}
	}
	return out
}

// TestFourEyes has it take two people to approve.
func TestFourEyes(t *testing.T) {
	var dir string
	s, _ := running(t, func(text string) string {
		dir = t.TempDir()
		if out, errOut, code := site.Run(t.Context(), nil, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
			"-keyout", dir+"/second.key", "-out", dir+"/second.pem", "-subj", "/CN=second", "-days", "2"); code != 0 {
			t.Fatalf("openssl: %s%s", out, errOut)
		}
		text = strings.Replace(text, "\noperators:\n", "\noperators:\n    two_person: [pending.approve]\n", 1)
		return strings.Replace(text, "    people:\n", "    people:\n        - {name: second, certificate: "+dir+"/second.pem, roles: [registration-officer]}\n", 1)
	})
	d := newDevice(t, s, "eyes.demo.example")
	d.wants(t, scep.PKCSReq, "pending")
	p := waits(t, s, d.cn)
	if st := postern[struct{ Waiting int }](t, s, "status"); st.Waiting != 1 {
		t.Errorf("the status says that %d requests wait", st.Waiting)
	}
	if _, errOut, code := s.Postern(t.Context(), nil, "pending", "approve", p.ID, "--reason", "alone"); code != 1 || !strings.Contains(errOut, "pending.approve takes 2 people here") {
		t.Errorf("one person approves: exit %d: %s", code, errOut)
	}
	act := dir + "/act.json"
	run := func(want int, args ...string) string {
		t.Helper()
		out, errOut, code := s.Postern(t.Context(), nil, args...)
		if code != want {
			t.Fatalf("postern %s: exit %d: %s%s", strings.Join(args, " "), code, out, errOut)
		}
		return out + errOut
	}
	if out := run(0, "pending", "approve", p.ID, "--reason", "ticket 4711", "--act", act); !strings.Contains(out, p.ID) || !strings.Contains(out, p.Digest) || !strings.Contains(out, "ticket 4711") {
		t.Errorf("the act does not say what it is for: %s", out)
	}
	run(0, "act", "sign", "--key", s.Path("ceremony", "operator.key"), "--cert", s.Path("ceremony", "operator.pem"), act)
	run(1, "act", "submit", act)
	d.wants(t, scep.CertPoll, "pending")
	run(0, "act", "sign", "--key", dir+"/second.key", "--cert", dir+"/second.pem", act)
	if out := run(0, "act", "submit", act); !strings.Contains(out, "is approved: certificate ") {
		t.Errorf("submitted: %s", out)
	}
	d.wants(t, scep.CertPoll, postern[waiting](t, s, "pending", "show", p.ID).Serial)
	run(1, "act", "submit", act)
	if out := run(0, "pending", "show", p.ID); !strings.Contains(out, "RSA 2048") || !strings.Contains(out, "CN="+d.cn) || !strings.Contains(out, p.Digest) {
		t.Errorf("pending show: %s", out)
	}
	finish(t, s)
}
