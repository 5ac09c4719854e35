package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/appliance/link"
)

// held is a courier with one certificate and one pending challenge.
type held struct{}

var errNone = errors.New("no challenge is pending")

func (held) Certificate(context.Context) (chain [][]byte, key []byte, err error) {
	return [][]byte{{1, 2}, {3}}, []byte{4}, nil
}

func (held) AcmeChallenge(_ context.Context, name string) (chain [][]byte, key []byte, err error) {
	if name != "a.example" {
		return nil, nil, errNone
	}
	return [][]byte{{5}}, []byte{6}, nil
}

func (held) State(context.Context) (leaf []byte, trouble string, err error) {
	return []byte{1, 2}, strings.Repeat("x", maxTrouble+1), nil
}

func (held) Validate(_ context.Context, q Question) (Verdict, error) {
	if q.Validator != "inventory" {
		return Verdict{}, errNone
	}
	return Verdict{"allowed", "c", string(q.Challenge)}, nil
}

type dial string

func (d dial) Dial(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", string(d))
}

// courierFor joins a role to a courier by a real link.
func courierFor(t *testing.T, role string) *Courier {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := link.NewServer(link.ServerOptions{Self: link.Hello{Role: RoleCourier}, Verbs: CourierTable(held{}, held{})})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = s.Serve(ctx, c, role)
		}
	}()
	c := NewCourier(link.ClientOptions{Self: link.Hello{Role: role}, Dial: dial(path)})
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		_ = l.Close()
		<-done
	})
	return c
}

// Nobody gets a key of the courier but who serves with it.
func TestTheCouriersVerbsByLink(t *testing.T) {
	for role, may := range map[string]struct{ certificate, challenge, state, validate bool }{
		RoleDevices:   {true, true, false, false},
		RoleOperators: {true, false, false, false},
		RoleAuthority: {false, false, true, true},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		c := courierFor(t, role)
		if err := c.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		check := func(verb string, may bool, got bool, err error) {
			t.Helper()
			f, refused := errors.AsType[*link.Fault](err)
			if may && (err != nil || !got) || !may && (!refused || f.Code != link.CodeRefused) {
				t.Errorf("%s, %s: %v, allowed %v", role, verb, err, may)
			}
		}
		chain, key, err := c.Certificate(ctx)
		check("certificate", may.certificate, len(chain) == 2 && bytes.Equal(chain[0], []byte{1, 2}) && bytes.Equal(key, []byte{4}), err)
		chain, key, err = c.AcmeChallenge(ctx, "a.example")
		check("challenge", may.challenge, len(chain) == 1 && bytes.Equal(key, []byte{6}), err)
		leaf, trouble, err := c.State(ctx)
		check("state", may.state, bytes.Equal(leaf, []byte{1, 2}) && len(trouble) == maxTrouble, err)
		verdict, err := c.Validate(ctx, Question{Validator: "inventory", Challenge: []byte("told")})
		check("validate", may.validate, verdict == Verdict{"allowed", "c", "told"}, err)
		if !may.challenge {
			continue
		}
		if _, _, err := c.AcmeChallenge(ctx, "b.example"); err == nil || !strings.Contains(err.Error(), errNone.Error()) {
			t.Errorf("a name without a challenge: %v", err)
		}
		if f, ok := errors.AsType[*link.Fault](second(c.AcmeChallenge(ctx, strings.Repeat("a", maxServerName+1)))); !ok {
			t.Errorf("a name that is too long: %v", f)
		}
	}
}

func second(_ [][]byte, _ []byte, err error) error { return err }

// FuzzCourierPair has answers that are not what a courier says.
func FuzzCourierPair(f *testing.F) {
	for _, chain := range [][][]byte{nil, {{}}, {{1, 2}, {3}}} {
		e := link.Sized(0)
		e.List(chain)
		e.Bytes([]byte{4})
		f.Add(e.Body())
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		chain, key, err := decodePair(link.NewDecoder(data))
		if err != nil {
			return
		}
		e := link.Sized(0)
		e.List(chain)
		e.Bytes(key)
		if len(chain) > maxCourierChain || !bytes.Equal(e.Body(), data) {
			t.Errorf("%x is read, and written as %x", data, e.Body())
		}
	})
}

func FuzzAsked(f *testing.F) {
	roundTrip(f, encodeAsked, decodeAsked,
		Question{},
		Question{Occasion: "check", Validator: "inventory", Profile: "wifi", Transaction: "t", Request: "r", Challenge: []byte{1}, CSR: []byte{0x30, 0}, Bare: true,
			Certificate: []byte{0x30, 1, 0}, Issuer: "CN=a", Why: "no"},
		Question{Transaction: strings.Repeat("t", maxPart), Challenge: bytes.Repeat([]byte{7}, maxChallenge)})
}

func FuzzVerdict(f *testing.F) {
	roundTrip(f, encodeVerdict, decodeVerdict, Verdict{}, Verdict{"refused", "no-such-device", "it is not in the inventory"})
}

// A question has a challenge in it: nothing prints it.
func TestAQuestionIsNotPrinted(t *testing.T) {
	q := Question{Validator: "inventory", Challenge: []byte("mellon"), CSR: []byte("mellon")}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		if s := fmt.Sprintf(verb, q) + fmt.Sprintf(verb, &q); strings.Contains(s, "mellon") || strings.Contains(s, "6d656c") || strings.Contains(s, "109") {
			t.Errorf("%s prints %s", verb, s)
		}
	}
}
