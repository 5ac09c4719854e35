package client_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/postern-pki/postern/protocol/scep/client"
)

// FuzzReply: what a server sends is refused without a panic, and nothing that
// nobody signed for the request is believed.
func FuzzReply(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte) {
		if rep, err := client.Inspect(&client.Reply{DER: in}); err == nil && (rep.Signed == nil || rep.Signed.Signer == nil) {
			t.Fatal("inspected without its signer")
		}
		ra := &x509.Certificate{Raw: []byte{0x30, 0}}
		_, err := client.Open(&client.Reply{DER: in}, client.Expectations{CA: &client.CA{RASign: ra, RADecrypt: ra, CA: ra}, TransactionID: "1", SenderNonce: []byte{1}})
		if !errors.Is(err, client.ErrReply) {
			t.Fatalf("it is believed: %v", err)
		}
	})
}

// FuzzNextCA: a next CA that the current one did not sign is refused.
func FuzzNextCA(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte) {
		_, _ = client.InspectNextCA(in)
		ra := &x509.Certificate{Raw: []byte{0x30, 0}}
		if _, err := client.OpenNextCA(in, &client.CA{RASign: ra, RADecrypt: ra, CA: ra}, time.Now()); !errors.Is(err, client.ErrNextCA) && !errors.Is(err, client.ErrCA) {
			t.Fatalf("it is believed: %v", err)
		}
	})
}

// FuzzCRLSet: what parses holds one element, which is that of the set.
func FuzzCRLSet(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte) {
		crl, err := client.ParseCRL(in)
		if err != nil {
			if !errors.Is(err, client.ErrCRL) {
				t.Fatal(err)
			}
			return
		}
		if len(crl) < 2 || crl[0] != 0x30 {
			t.Fatalf("%x is no element", crl)
		}
		if again, err := client.ParseCRL(crlSet(nil, crl)); err != nil || !bytes.Equal(again, crl) {
			t.Fatalf("%x, written again, becomes %x: %v", crl, again, err)
		}
	})
}
