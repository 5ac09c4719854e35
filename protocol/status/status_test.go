package status_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/ocsp"

	"github.com/postern-pki/postern/protocol/status"
)

// questions are made by another implementation.
func questions(t testing.TB, serial *big.Int) map[crypto.Hash][]byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{RawSubject: []byte{0x30, 0}, RawSubjectPublicKeyInfo: spki}
	all := map[crypto.Hash][]byte{}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		if all[h], err = ocsp.CreateRequest(&x509.Certificate{SerialNumber: serial}, ca, &ocsp.RequestOptions{Hash: h}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func TestAQuestionIsReadAndMade(t *testing.T) {
	for text, serial := range map[string]*big.Int{"01": big.NewInt(1), "80": big.NewInt(128), "7f" + strings.Repeat("00", 19): new(big.Int).Lsh(big.NewInt(127), 152)} {
		for h, der := range questions(t, serial) {
			id, err := status.ParseRequest(der)
			if err != nil || id.Hash != h || id.Serial != text || len(id.KeyHash) != h.Size() || len(id.NameHash) != h.Size() {
				t.Errorf("%s, %s: %+v, %v", text, h, id, err)
			}
			if again, err := id.Request(); err != nil || !bytes.Equal(again, der) {
				t.Errorf("%s, %s: made as %x, %v; want %x", text, h, again, err, der)
			}
		}
	}
}

func TestWhatIsNoQuestion(t *testing.T) {
	good := questions(t, big.NewInt(1))[crypto.SHA256]
	wrap := func(b []byte) []byte { return append([]byte{0x30, byte(len(b))}, b...) }
	for what, der := range map[string][]byte{
		"nothing": nil, "an octet more": append(bytes.Clone(good), 0), "cut short": good[:len(good)-1], "no certificate": wrap(wrap(wrap(nil))),
		"a negative serial": bytes.Replace(good, []byte{2, 1, 1}, []byte{2, 1, 0x81}, 1), "serial zero": bytes.Replace(good, []byte{2, 1, 1}, []byte{2, 1, 0}, 1),
		"too long": make([]byte, status.MaxRequest+1), "a text": []byte("hello"),
	} {
		if id, err := status.ParseRequest(der); !errors.Is(err, status.ErrMalformed) {
			t.Errorf("%s: %+v, %v", what, id, err)
		}
	}
	other := bytes.Replace(good, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1}, []byte{0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3}, 1)
	if _, err := status.ParseRequest(other); !errors.Is(err, status.ErrHash) {
		t.Errorf("another hash: %v", err)
	}
}

// source has one list, and answers by what is told to it.
type source struct {
	list   status.List
	answer status.Answer
	err    error
}

func (s *source) List(_ context.Context, _ string, have [32]byte) (status.List, error) {
	l := s.list
	if have == l.Digest() {
		l.DER = nil
	}
	return l, s.err
}

func (s *source) Answer(context.Context, string, status.CertID) (status.Answer, error) {
	return s.answer, s.err
}

func (s *source) Malformed(context.Context, string) error { return s.err }

func TestTheNewestIsServedEachTime(t *testing.T) {
	now := time.Now()
	s := &source{list: status.List{Answer: status.Answer{DER: []byte("first"), ThisUpdate: now, NextUpdate: now.Add(time.Hour)}}}
	h := status.NewHandler(status.Options{Source: s, Now: func() time.Time { return now }, Log: zap.NewNop()})
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w
	}
	for _, text := range []string{"first", "first", "second"} {
		s.list.DER = []byte(text)
		if w := get("/crl/demo.crl"); w.Body.String() != text || w.Header().Get("Cache-Control") != "public, no-transform, must-revalidate, max-age=300" {
			t.Errorf("%s: %q, %v", text, w.Body, w.Header())
		}
	}
	ask := "/ocsp/demo/" + base64.StdEncoding.EncodeToString(questions(t, big.NewInt(1))[crypto.SHA1])
	for left, age := range map[time.Duration]string{time.Minute: "max-age=60", -time.Minute: "max-age=0", 24 * time.Hour: "max-age=300"} {
		s.answer = status.Answer{DER: []byte(fmt.Sprint(left)), ThisUpdate: now, NextUpdate: now.Add(left)}
		if w := get(ask); w.Body.String() != fmt.Sprint(left) || !strings.HasSuffix(w.Header().Get("Cache-Control"), age) {
			t.Errorf("%s: %q, %v", left, w.Body, w.Header())
		}
	}
	for err, want := range map[error]struct {
		code int
		body string
	}{status.ErrUnknownIssuer: {404, ""}, status.ErrUnauthorized: {200, "\x30\x03\x0a\x01\x06"}, errors.New("fault"): {200, "\x30\x03\x0a\x01\x03"}} {
		s.err = err
		w := get(ask)
		if w.Code != want.code || want.body != "" && w.Body.String() != want.body || w.Header().Get("Location") != "" {
			t.Errorf("%v: %d %x", err, w.Code, w.Body)
		}
	}
	s.err = errors.New("fault")
	if w := get("/crl/demo.crl"); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "fault") {
		t.Errorf("a fault: %d %s", w.Code, w.Body)
	}
}

// FuzzRequest checks that no octets panic the parser, and that what it takes for a
// question names one certificate, which asked for again is the same.
func FuzzRequest(f *testing.F) {
	for _, der := range questions(f, big.NewInt(1<<40)) {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		id, err := status.ParseRequest(b)
		if err != nil {
			if !errors.Is(err, status.ErrMalformed) && !errors.Is(err, status.ErrHash) {
				t.Error(err)
			}
			return
		}
		der, err := id.Request()
		if err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		if again, err := status.ParseRequest(der); err != nil || fmt.Sprint(again) != fmt.Sprint(id) {
			t.Errorf("%x is read as %+v and made as %x", b, id, der)
		}
	})
}
