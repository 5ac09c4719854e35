package pipeline_test

import (
	"crypto/x509"
	"fmt"
	"testing"

	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// TestTenThousandNonces asks for one certificate ten thousand times, and, so that
// refusals are among the answers, in every eighth message wrongly: no nonce comes
// twice, and none is the client's.
// Covers: S-070, S-071
func TestTenThousandNonces(t *testing.T) {
	const answers, clients = 10_000, 16
	d := at(t, "many")
	const cn = "nonces.demo.example"
	key := keys[0]
	good := selfSigned(t, key, ask(t, key, cn, challenge(t, "many", cn).Challenge))
	good.TransactionID = "nonces"
	wrong := selfSigned(t, key, ask(t, key, "nonces.other.example", "wrong"))
	requests := []*site.Request{must(d.Request(wrong))(t)}
	for range 7 {
		requests = append(requests, must(d.Request(good))(t))
	}
	must(d.Do(t.Context(), requests[1]))(t)
	type seen struct{ echoed, failed int }
	sets := make([]map[string]bool, clients)
	counts, errs := together(clients, func(worker int) (n seen, err error) {
		sets[worker] = map[string]bool{}
		for i := range answers / clients {
			r := requests[i%len(requests)]
			reply, err := d.Post(t.Context(), r.DER)
			if err != nil {
				return n, err
			}
			rep, err := client.Inspect(reply)
			if err != nil {
				return n, err
			}
			sets[worker][string(rep.SenderNonce)] = true
			if string(rep.RecipientNonce) == string(r.Expect.SenderNonce) && len(rep.SenderNonce) == 16 {
				n.echoed++
			}
			if rep.Status == scep.StatusFailure {
				n.failed++
			}
		}
		return n, nil
	})
	if len(errs) > 0 {
		t.Fatal(errs[0])
	}
	all := map[string]bool{}
	var sum seen
	for i, n := range counts {
		for nonce := range sets[i] {
			all[nonce] = true
		}
		sum.echoed, sum.failed = sum.echoed+n.echoed, sum.failed+n.failed
	}
	for _, r := range requests {
		if all[string(r.Expect.SenderNonce)] {
			t.Error("a client's nonce came back as the server's")
		}
	}
	if len(all) != answers || sum.echoed != answers || sum.failed < answers/10 || sum.failed > answers/6 {
		t.Errorf("%d nonces in %d answers, %d echoed, %d refusals", len(all), answers, sum.echoed, sum.failed)
	}
	if n := listed(t, cn); n != 1 {
		t.Errorf("%d certificates", n)
	}
}

// TestATransactionIDThatComesAgain: many clients derive it from their key, so that it
// comes again with each renewal. Another CSR under it is a new request once the first
// is done: without a challenge it is refused, with one it gets another certificate;
// and the first message still gets the first.
// Covers: S-076, S-075
func TestATransactionIDThatComesAgain(t *testing.T) {
	d := at(t, "many")
	const cn = "same-id.demo.example"
	send := func(csr []byte) (*site.Request, *x509.Certificate, error) {
		m := selfSigned(t, keys[0], csr)
		m.TransactionID = "5e884898da28047151d0e56f8dc6292773603d0d"
		r := must(d.Request(m))(t)
		got, err := d.Do(t.Context(), r)
		if err != nil {
			return r, nil, err
		}
		return r, got.Certificate, nil
	}
	first, one, err := send(ask(t, keys[0], cn, challenge(t, "many", cn).Challenge))
	must(one, err)(t)
	_, _, err = send(ask(t, keys[0], cn, ""))
	refused(t, err).is(t, badRequest, "a new enrollment needs a challenge")
	_, two, err := send(ask(t, keys[0], cn, challenge(t, "many", cn).Challenge))
	if must(two, err)(t).Equal(one) {
		t.Error("another request got the first one's certificate")
	}
	if again := must(d.Do(t.Context(), first))(t).Certificate; !again.Equal(one) {
		t.Error("the first message gets another certificate now")
	}
}

// TestANewTransactionAfterALostAnswer: a client that forgot everything begins anew.
// With a challenge it may, as often as the profile allows a subject to have
// certificates.
// Covers: S-147
func TestANewTransactionAfterALostAnswer(t *testing.T) {
	d := at(t, "demo")
	const cn = "anew.demo.example"
	serials := map[string]bool{}
	key := newKey(t)
	for range 2 {
		cert, _ := enrolled(t, d, "demo", cn, key)
		serials[cert.SerialNumber.String()] = true
	}
	if len(serials) != 2 {
		t.Errorf("%d certificates for two enrollments", len(serials))
	}
	_, err := enroll(t, d, key, cn, challenge(t, "demo", cn).Challenge)
	refused(t, err).is(t, badRequest, "").reasons(t, "limits.active_per_subject")
	_, err = enroll(t, d, key, cn, "")
	refused(t, err).is(t, badRequest, "a new enrollment needs a challenge")
}

// TestTransactionIDsAreEchoed has long and odd ones come back as they were sent.
// Covers: S-074, S-075
func TestTransactionIDsAreEchoed(t *testing.T) {
	d := at(t, "many")
	for i, id := range []string{"1", "7XXEY-ERLPU-2JDR9", "abc_1@x", "a b'()+,-./:=?", "*&%\"\\\x00\n\x7f", fmt.Sprintf("%0512d", 7)} {
		cn := fmt.Sprintf("echo-%d.demo.example", i)
		m := selfSigned(t, keys[i], ask(t, keys[i], cn, challenge(t, "many", cn).Challenge))
		m.TransactionID = id
		r := must(d.Request(m))(t)
		reply := must(d.Post(t.Context(), r.DER))(t)
		if got := must(client.Inspect(reply))(t).TransactionID; got != id {
			t.Errorf("%q came back as %q", id, got)
		}
		must(client.Open(reply, r.Expect))(t)
	}
}
