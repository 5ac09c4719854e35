package scep_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
)

// Covers: S-013
func TestPaths(t *testing.T) {
	w := newWorld(t)
	status := func(path string) int { // on the wire as it stands here
		conn := must(tls.Dial("tcp", w.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true}))(t)
		defer func() { _ = conn.Close() }()
		must(io.WriteString(conn, "GET "+path+"?operation=GetCACaps HTTP/1.0\r\n\r\n"))(t)
		res := must(http.ReadResponse(bufio.NewReader(conn), nil))(t)
		defer func() { _ = res.Body.Close() }()
		if res.Header.Get("Cache-Control") != "no-store" || res.ContentLength < 0 {
			t.Errorf("%s: header %v", path, res.Header)
		}
		return res.StatusCode
	}
	for _, suffix := range []string{"", "/", "/pkiclient.exe", "/cgi-bin/pkiclient.exe", "/mscep.dll", "/certsrv/mscep/mscep.dll", "/certsrv/mscep/mscep.dll/pkiclient.exe"} {
		if got := status("/scep/wifi" + suffix); got != 200 {
			t.Errorf("%q: %d", suffix, got)
		}
	}
	if got := status("/scep/%77ifi"); got != 200 {
		t.Errorf("an escape decoded once: %d", got)
	}
	if r := w.lastRejected(t); !r.Served || r.Profile != "wifi" {
		t.Errorf("recorded %+v", r)
	}
	before := len(w.rejected)
	for _, path := range []string{
		"/", "/scep", "/scep/", "/scep//", "/scep//wifi", "//scep/wifi", "/scep/wifi//", "/scep/wif%2569", "/scep/wif%25%36%39", "/scep/wifi%2f", "/scep/wifi%2Fpkiclient.exe", "/scep%2Fwifi", "/scep/wifi/%2e", "/scep/%2e%2E", "/scep/wifi%5c", "/scep/wifi%ff",
		"/scep/.", "/scep/..", "/scep/./wifi", "/scep/../scep/wifi", "/scep/wifi/.", "/scep/wifi/..", "/scep/wifi/../wifi", "/scep/wifi/x", "/scep/WIFI",
		"/SCEP/wifi", "/scep/wifi/PKICLIENT.EXE", "/scep/wifi/pkiclient.exe/", "/scep/other", "/scep/wifi%00", "/scep/wifi;x", "/scep/wifi\\", "/scep/wi\xc3\xa9",
		"/cgi-bin/pkiclient.exe",
	} {
		if got := status(path); got != 404 {
			t.Errorf("%q: %d", path, got)
		}
		if before++; len(w.rejected) != before || w.lastRejected(t).Served {
			t.Errorf("%q: not recorded", path)
		}
	}
}

// Covers: S-005, S-006, S-009, S-013, S-014, S-020, S-022, S-045
func TestQuestions(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		method, query string
		status        int
		typ, body     string
	}{
		{"GET", "operation=GetCACaps", 200, "text/plain", "AES\nPOSTPKIOperation\nSHA-256\nSCEPStandard\n"},
		{"GET", "operation=GetCACaps&message=x%zz;", 200, "text/plain", "AES\nPOSTPKIOperation\nSHA-256\nSCEPStandard\n"},
		{"GET", "message=x&operation=GetCACaps", 200, "text/plain", "AES\nPOSTPKIOperation\nSHA-256\nSCEPStandard\n"},
		{"GET", "operation=GetCACert&message=1", 404, "text/plain", "not found\n"},
		{"GET", "operation=GetCACert&message=00099999999999999999999999", 404, "text/plain", "not found\n"},
		{"GET", "operation=GetNextCACert", 404, "text/plain", "not found\n"},
		{"GET", "operation=getcacaps", 400, "text/plain", "bad request\n"},
		{"GET", "operation=GetCACaps&operation=GetCACert", 400, "text/plain", "bad request\n"},
		{"GET", "operation=PKIOperation&message=AA==&message=AA==", 400, "text/plain", "bad request\n"},
		{"GET", "operation=PKIOperation", 400, "text/plain", "bad request\n"},
		{"GET", "operation=PKIOperation&message=!", 400, "text/plain", "bad request\n"},
		{"GET", "", 400, "text/plain", "bad request\n"},
		{"POST", "operation=GetCACert", 400, "text/plain", "bad request\n"},
		{"PUT", "operation=PKIOperation", 405, "text/plain", "method not allowed\n"},
		{"DELETE", "operation=GetCACaps", 405, "text/plain", "method not allowed\n"},
	} {
		w.rejected = nil
		r := w.do(t, c.method, "/scep/wifi?"+c.query, nil)
		if r.status != c.status || string(r.body) != c.body || r.header.Get("Content-Type") != c.typ || r.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: %d, %q, %v", c.method, c.query, r.status, r.body, r.header)
		}
		if len(w.rejected) != 1 || w.rejected[0].Served != (c.status == 200) || w.rejected[0].Served == (w.rejected[0].Why != "") {
			t.Errorf("%s %s: recorded %+v", c.method, c.query, w.rejected)
		}
	}
	if r := w.do(t, "HEAD", "/scep/wifi?operation=GetCACaps", nil); r.status != 405 || r.header.Get("Allow") != "GET, POST" {
		t.Errorf("HEAD: %d", r.status)
	}
}

// Covers: S-005, S-011, S-031, S-032, S-033, S-039a
func TestCACert(t *testing.T) {
	w := newWorld(t)
	for _, message := range []string{"", "&message=", "&message=0", "&message=CAIdentifier", "&message=-1", "&message=1x", "&message=%31"} {
		r := w.do(t, "GET", "/scep/wifi?operation=GetCACert"+message, nil)
		if r.status != 200 || r.header.Get("Content-Type") != "application/x-x509-ca-ra-cert" {
			t.Fatalf("%s: %d %v", message, r.status, r.header)
		}
		certs := must(cms.ParseCertsOnly(must(cms.DER(r.body, cms.DefaultLimits()))(t)))(t)
		want := [][]byte{w.raSign.cert, w.raDecrypt.cert, w.ca.cert, w.other.cert}
		if len(certs) != len(want) {
			t.Fatalf("%d certificates", len(certs))
		}
		for i := range want {
			if !bytes.Equal(certs[i], want[i]) {
				t.Errorf("certificate %d", i)
			}
		}
	}
	g := w.service.Current()
	g.RADecrypt, g.Chain = g.RASign, nil
	r := w.do(t, "GET", "/scep/wifi?operation=GetCACert", nil)
	if certs := must(cms.ParseCertsOnly(must(cms.DER(r.body, cms.DefaultLimits()))(t)))(t); len(certs) != 2 {
		t.Errorf("one RA certificate: %d certificates", len(certs))
	}
}

// Covers: S-002, S-003
func TestGetEncodings(t *testing.T) {
	w := newWorld(t)
	message := w.message(t, nil)
	std := base64.StdEncoding.EncodeToString(message)
	for !strings.Contains(std, "+") || !strings.Contains(std, "/") || !strings.HasSuffix(std, "=") {
		message = w.message(t, nil)
		for len(message)%3 == 0 {
			message = w.message(t, func(r *request) { r.signer = certify(t, strings.Repeat("x", len(message)%7+1), w.device.key, nil) })
		}
		std = base64.StdEncoding.EncodeToString(message)
	}
	var lines strings.Builder
	for i := 0; i < len(std); i += 64 {
		lines.WriteString(std[i:min(i+64, len(std))] + "\r\n")
	}
	var digest string
	for name, encoded := range map[string]string{
		"escaped":       url.QueryEscape(std),
		"plain":         std,
		"only =":        strings.ReplaceAll(std, "=", "%3d"),
		"space for +":   strings.ReplaceAll(std, "+", "%20"),
		"lines":         url.QueryEscape(lines.String()),
		"URL-safe":      base64.URLEncoding.EncodeToString(message),
		"no padding":    base64.RawStdEncoding.EncodeToString(message),
		"URL, unpadded": base64.RawURLEncoding.EncodeToString(message),
	} {
		r := w.do(t, "GET", "/scep/wifi?operation=PKIOperation&message="+encoded, nil)
		if c := w.certRep(t, r); c.status != "0" {
			t.Errorf("%s: status %q", name, c.status)
		}
		last := w.submitted[len(w.submitted)-1].Proof
		if digest == "" {
			digest = string(last.Signature)
		}
		if digest != string(last.Signature) {
			t.Errorf("%s: another message", name)
		}
	}
}

// Covers: S-013, S-015, S-180
func TestTooLong(t *testing.T) {
	w := newWorld(t)
	if r := w.do(t, "POST", "/scep/wifi", make([]byte, 64<<10+1)); r.status != 413 || w.lastRejected(t).Bytes < 64<<10 {
		t.Errorf("POST: %d", r.status)
	}
	if r := w.do(t, "POST", "/scep/wifi", make([]byte, 64<<10)); r.status != 400 {
		t.Errorf("POST at the limit: %d", r.status)
	}
	if r := w.do(t, "GET", "/scep/wifi?operation=PKIOperation&message="+strings.Repeat("A", 48<<10+1), nil); r.status != 414 {
		t.Errorf("GET: %d", r.status)
	}
	if r := w.do(t, "GET", "/scep/wifi?operation=PKIOperation&message="+strings.Repeat("A", 48<<10), nil); r.status != 400 {
		t.Errorf("GET at the limit: %d", r.status)
	}
}

// Covers: S-006, S-016
func TestRequestTypes(t *testing.T) {
	w := newWorld(t)
	message := w.message(t, nil)
	for _, header := range [][]string{nil, {"Content-Type", ""}, {"Content-Type", "application/octet-stream"}, {"Content-Type", "application/x-pki-message"}, {"Content-Type", ";;"}} {
		for _, query := range []string{"", "?operation=PKIOperation", "?operation=", "?x=y"} {
			if c := w.certRep(t, w.do(t, "POST", "/scep/wifi"+query, message, header...)); c.status != "0" {
				t.Errorf("%v %s: status %q", header, query, c.status)
			}
		}
	}
}

// What no answer can be addressed to is 400, and says no more.
//
// Covers: S-013, S-060
func TestNoAddress(t *testing.T) {
	w := newWorld(t)
	good := w.message(t, nil)
	for name, message := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "cut": good[:len(good)-1], "trailing": append(bytes.Clone(good), 0),
		"no transaction": w.message(t, func(r *request) { r.attrs = r.attrs[1:] }),
		"no nonce":       w.message(t, func(r *request) { r.attrs = r.attrs[:2] }),
		"only a CSR":     w.csr(t, w.device.key),
	} {
		w.rejected = nil
		if r := w.post(t, message); r.status != 400 || string(r.body) != "bad request\n" || len(w.rejected) != 1 || len(w.rejected[0].MessageDigest) != 64 {
			t.Errorf("%s: %d %q, recorded %+v", name, r.status, r.body, w.rejected)
		}
	}
}
