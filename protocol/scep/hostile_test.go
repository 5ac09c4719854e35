package scep_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// serve answers without a network.
func (w *world) serve(message []byte) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.handler().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/scep/wifi?operation=PKIOperation", bytes.NewReader(message)))
	return rec
}

// A message that ends early is none, wherever it ends.
//
//
func TestTruncated(t *testing.T) {
	w := newWorld(t)
	good := w.message(t, nil)
	for n := range good {
		w.rejected = nil
		if rec := w.serve(good[:n]); rec.Code != 400 || rec.Body.String() != "bad request\n" || len(w.rejected) != 1 {
			t.Fatalf("%d of %d octets: %d %q, recorded %+v", n, len(good), rec.Code, rec.Body, w.rejected)
		}
	}
	if w.decrypts != 0 || len(w.submitted) != 0 {
		t.Errorf("%d decryptions, %d submitted", w.decrypts, len(w.submitted))
	}
}

// A message with one octet changed gives a CertRep or 400, and is recorded once.
// Where it still proves something, it is what its sender signed.
func TestFlipped(t *testing.T) {
	w := newWorld(t)
	good := w.message(t, nil)
	w.serve(good)
	signed := w.submitted[0].Proof
	for i := 0; i < len(good); i += 5 {
		w.rejected, w.submitted = nil, nil
		rec := w.serve(slices.Concat(good[:i], []byte{good[i] ^ 0x21}, good[i+1:]))
		switch {
		case rec.Code == http.StatusBadRequest && rec.Body.String() == "bad request\n":
		case rec.Code == http.StatusOK && rec.Header().Get("Content-Type") == "application/x-pki-message":
		default:
			t.Errorf("octet %d: %d %q", i, rec.Code, rec.Body)
		}
		if len(w.rejected)+len(w.submitted) != 1 {
			t.Errorf("octet %d: %d recorded, %d submitted", i, len(w.rejected), len(w.submitted))
		}
		for _, r := range w.submitted {
			if p := r.Proof; !bytes.Equal(p.Envelope, signed.Envelope) || !bytes.Equal(p.SignedAttrs, signed.SignedAttrs) || !bytes.Equal(p.Signature, signed.Signature) {
				t.Errorf("octet %d: something else was submitted", i)
			}
		}
	}
}

// zeros is a body without end, and counts what was taken of it.
type zeros struct{ left, read int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	z.left, z.read = z.left-n, z.read+n
	return int(n), nil
}

func TestHugeBody(t *testing.T) {
	const huge = 100 << 20
	w := newWorld(t)
	for name, length := range map[string]int64{"announced": huge, "chunked": -1} {
		body := &zeros{left: huge}
		r := httptest.NewRequest(http.MethodPost, "/scep/wifi?operation=PKIOperation", body)
		r.ContentLength = length
		rec := httptest.NewRecorder()
		w.handler().ServeHTTP(rec, r)
		if rec.Code != http.StatusRequestEntityTooLarge || body.read > 1<<20 || w.lastRejected(t).Bytes < 64<<10 {
			t.Errorf("%s: %d after %d octets, recorded %+v", name, rec.Code, body.read, w.lastRejected(t))
		}
	}
}

// raw writes a request as it is, and returns the answer to it.
func (w *world) raw(t *testing.T, request string) *http.Response {
	t.Helper()
	conn := must(tls.Dial("tcp", w.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true}))(t)
	t.Cleanup(func() { _ = conn.Close() })
	must(io.WriteString(conn, request))(t)
	return must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
}

// Covers: S-019
func TestOldHTTP(t *testing.T) {
	w := newWorld(t)
	message := string(w.message(t, nil))
	encoded := url.QueryEscape(base64.StdEncoding.EncodeToString([]byte(message)))
	half := len(message) / 2
	for name, request := range map[string]string{
		"1.0, no Host":      fmt.Sprintf("POST /scep/wifi?operation=PKIOperation HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(message), message),
		"1.0 GET":           "GET /scep/wifi/pkiclient.exe?operation=PKIOperation&message=" + encoded + " HTTP/1.0\r\n\r\n",
		"Connection: close": fmt.Sprintf("POST /scep/wifi HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(message), message),
		"chunked": fmt.Sprintf("POST /scep/wifi HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n",
			half, message[:half], len(message)-half, message[half:]),
	} {
		res := w.raw(t, request)
		body := must(io.ReadAll(res.Body))(t)
		if res.ContentLength != int64(len(body)) {
			t.Errorf("%s: Content-Length %d for %d octets", name, res.ContentLength, len(body))
		}
		if c := w.certRep(t, reply{res.StatusCode, res.Header, body}); c.status != "0" {
			t.Errorf("%s: status %q", name, c.status)
		}
	}
}

// Whoever writes slower than the server waits is cut off, and recorded.
//
// Covers: S-181
func TestSlowWriter(t *testing.T) {
	w := newWorld(t)
	w.Close()
	w.Server = httptest.NewUnstartedServer(w.handler())
	w.Config.ReadTimeout = 200 * time.Millisecond
	w.StartTLS()
	t.Cleanup(w.Close)
	res := w.raw(t, "POST /scep/wifi?operation=PKIOperation HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n0")
	if res.StatusCode != http.StatusBadRequest || w.lastRejected(t).Why != "message was cut off" {
		t.Errorf("%d, recorded %+v", res.StatusCode, w.lastRejected(t))
	}
}

// Covers: S-004, A-16
func TestEscapedThrice(t *testing.T) {
	w := newWorld(t)
	message := base64.StdEncoding.EncodeToString(w.message(t, nil)) + "\n"
	for times, want := range []int{200, 200, 200, 400, 400} {
		if r := w.do(t, "GET", "/scep/wifi?operation=PKIOperation&message="+strings.TrimRight(message, "\n"), nil); r.status != want {
			t.Errorf("a message that was escaped %d times: %d, want %d", times, r.status, want)
		}
		message = url.QueryEscape(message)
	}
}

// Who hangs up before the answer is recorded all the same.
func TestHangUp(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequest(http.MethodPost, "/scep/wifi", bytes.NewReader(w.message(t, func(r *request) { r.message = flipLast })))
	w.handler().ServeHTTP(httptest.NewRecorder(), r.WithContext(ctx))
	if w.lastRejected(t).Kind != protocol.BadProof {
		t.Errorf("recorded %+v", w.rejected)
	}
}

// recipients changes the SET OF RecipientInfo of an envelope.
func recipients(t testing.TB, envelope []byte, change func(mine []byte) []byte) []byte {
	t.Helper()
	var info contentInfo
	var data envelopedData
	must(unmarshal(envelope, &info))(t)
	must(unmarshal(info.Content.Bytes, &data))(t)
	data.Recipients = tagged(0, 17, change(data.Recipients.Bytes))
	info.Content = tagged(2, 0, marshal(data))
	return marshal(info)
}

// Covers: S-086
func TestRecipients(t *testing.T) {
	w := newWorld(t)
	var foreign []byte
	recipients(t, must(cms.Envelop(rand.Reader, []byte("x"), w.other.parsed(t), cms.AES128CBC))(t), func(b []byte) []byte { foreign = bytes.Clone(b); return b })
	password := []byte{0xa3, 0x03, 0x02, 0x01, 0x00} // [3] PasswordRecipientInfo
	for name, c := range map[string]struct {
		change   func([]byte) []byte
		status   string
		decrypts int
	}{
		"others beside ours": {func(b []byte) []byte { return slices.Concat(foreign, b, password) }, "0", 1},
		"ours twice":         {func(b []byte) []byte { return slices.Concat(b, b) }, "2", 0},
		"none":               {func([]byte) []byte { return nil }, "2", 0},
		"another's":          {func([]byte) []byte { return foreign }, "2", 0},
		"only a password":    {func([]byte) []byte { return password }, "2", 0},
	} {
		w.decrypts = 0
		r := w.certRep(t, w.post(t, w.message(t, func(r *request) {
			r.content = func(b []byte) []byte { return recipients(t, b, c.change) }
		})))
		if r.status != c.status || w.decrypts != c.decrypts || c.status == "2" && r.failInfo != "1" {
			t.Errorf("%s: status %q, failInfo %q, %d decryptions", name, r.status, r.failInfo, w.decrypts)
		}
	}
}

// What a parser does with decrypted content must not show, not even a panic.
func TestPanicOnContent(t *testing.T) {
	core, logs := observer.New(zap.ErrorLevel)
	refused, why := scep.CheckContent(nil, zap.New(core))
	if !refused || why != "envelope content" || logs.Len() != 1 {
		t.Errorf("refused %v: %q, logged %v", refused, why, logs.All())
	}
}

// slow takes its time, and then finds no proof; or never answers.
type slow struct {
	protocol.Authority
	takes time.Duration
}

func (s slow) Submit(ctx context.Context, _ protocol.Request) (protocol.Outcome, error) {
	select {
	case <-ctx.Done():
		return protocol.Outcome{}, ctx.Err()
	case <-time.After(s.takes):
		return protocol.Outcome{RequestID: "id", Status: protocol.Refused, Refusal: &protocol.Refusal{Kind: protocol.BadProof, Say: "telling"}}, nil
	}
}

// The time of an answer, by a clock that only moves while everyone waits.
//
// Covers: S-087
func TestTime(t *testing.T) {
	w := newWorld(t)
	good, bad := w.message(t, nil), w.message(t, func(r *request) { r.message = flipLast })
	for name, c := range map[string]struct {
		takes, want time.Duration
		message     []byte
		status      int
	}{
		"signature":            {0, 50 * time.Millisecond, bad, 200},
		"authority, at once":   {0, 50 * time.Millisecond, good, 200},
		"authority, later":     {130 * time.Millisecond, 150 * time.Millisecond, good, 200},
		"authority, on time":   {150*time.Millisecond - 1, 150 * time.Millisecond, good, 200},
		"authority, no answer": {time.Hour, 20 * time.Second, good, 503},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := scep.NewHandler(scep.Options{Authority: slow{w, c.takes}, Keys: w})
			rec, start := httptest.NewRecorder(), time.Now()
			h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/scep/wifi", bytes.NewReader(c.message)))
			if took := time.Since(start); rec.Code != c.status || took != c.want {
				t.Errorf("%s: %d after %v, want %d after %v", name, rec.Code, took, c.status, c.want)
			}
			if rec.Code == 503 && strings.TrimSpace(rec.Header().Get("Retry-After")) == "" {
				t.Errorf("%s: no Retry-After", name)
			}
		})
	}
}
