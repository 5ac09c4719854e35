package pipeline_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/postern-pki/postern/test/site"
)

// TestBadInputGetsAClearStatus: each answer is a status and our own words, and
// each is in the log.
//
// Covers: S-013, S-015, S-045
func TestBadInputGetsAClearStatus(t *testing.T) {
	d := at(t, "interop")
	u := d.URL
	for what, tt := range map[string]struct {
		method, url string
		body        io.Reader
		status      int
		why         string // "" where it is served
	}{
		"a GET over 48 KiB":      {"GET", u + "?operation=PKIOperation&message=" + strings.Repeat("A", 48<<10+1), nil, 414, "message too long"},
		"a POST over 64 KiB":     {"POST", u + "?operation=PKIOperation", strings.NewReader(strings.Repeat("0", 64<<10+1)), 413, "message too long"},
		"no message at all":      {"POST", u + "?operation=PKIOperation", nil, 400, "message encoding"},
		"no CMS":                 {"POST", u + "?operation=PKIOperation", strings.NewReader("hello"), 400, "message encoding"},
		"no base64":              {"GET", u + "?operation=PKIOperation&message=%00", nil, 400, "message is not base64"},
		"no such operation":      {"GET", u + "?operation=Nothing", nil, 400, "unknown operation"},
		"no operation":           {"GET", u, nil, 400, "unknown operation"},
		"another case":           {"GET", u + "?operation=getcacaps", nil, 400, "unknown operation"},
		"an operation twice":     {"GET", u + "?operation=GetCACaps&operation=GetCACert", nil, 400, "operation or message twice"},
		"a posted question":      {"POST", u + "?operation=GetCACert", strings.NewReader("x"), 400, "operation cannot be posted"},
		"no such profile":        {"GET", u + "x?operation=GetCACaps", nil, 404, "unknown profile"},
		"a path with an end":     {"GET", u + "/../demo?operation=GetCACaps", nil, 404, "path"},
		"an escaped slash":       {"GET", u + "%2fpkiclient.exe?operation=GetCACaps", nil, 404, "path"},
		"another method":         {"DELETE", u + "?operation=GetCACaps", nil, 405, "method"},
		"no next CA":             {"GET", u + "?operation=GetNextCACert", nil, 404, "no next CA"},
		"a CA that is not there": {"GET", u + "?operation=GetCACert&message=1", nil, 404, "no CA of that number"},
		"a path that NDES has":   {"GET", u + "/certsrv/mscep/mscep.dll?operation=GetCACaps", nil, 200, ""},
	} {
		from := logSize(t)
		req := must(http.NewRequestWithContext(t.Context(), tt.method, tt.url, tt.body))(t)
		resp := must(d.HTTP.Do(req))(t)
		body := must(io.ReadAll(resp.Body))(t)
		_ = resp.Body.Close()
		if resp.StatusCode != tt.status || tt.status != 200 && string(body) != strings.ToLower(http.StatusText(tt.status))+"\n" {
			t.Errorf("%s: %d %q, want %d", what, resp.StatusCode, body, tt.status)
		}
		want := "rejected"
		if tt.why == "" {
			want = "served"
		}
		if got := records(t, from); len(got) != 1 || got[0].Event != "message" || got[0].Outcome != want || got[0].Object.Why != tt.why {
			t.Errorf("%s: the log says %+v", what, got)
		}
	}
}

// dial is a connection on which anything can be said.
func dial(t *testing.T, d *site.Device) *tls.Conn {
	t.Helper()
	conn := must(tls.Dial("tcp", must(url.Parse(d.URL))(t).Host, must(shared.TLS())(t)))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestHugeBodies sends 100 MB, announced and not, from several sides at once: it
// is refused, and takes no memory.
//
// Covers: S-180
func TestHugeBodies(t *testing.T) {
	const huge = 100 << 20
	d := at(t, "many")
	before, from := must(shared.PeakMemory())(t), logSize(t)
	path := must(url.Parse(d.URL))(t).Path + "?operation=PKIOperation"
	conns := make([]*tls.Conn, 16)
	for i := range conns {
		conns[i] = dial(t, d)
	}
	statuses, errs := together(len(conns), func(i int) (int, error) {
		conn := conns[i]
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return 0, err
		}
		go pour(conn, path, huge, i%2 == 0) // until it is cut off
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	})
	for _, status := range statuses {
		if status != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d", status)
		}
	}
	if len(errs) > 0 {
		t.Errorf("%d without an answer: %v", len(errs), errs[0])
	}
	rejected := 0
	for _, r := range records(t, from) {
		if r.Outcome == "rejected" && r.Object.Why == "message too long" {
			rejected++
		}
	}
	if rejected != len(conns) {
		t.Errorf("%d of %d are in the log", rejected, len(conns))
	}
	if after := must(shared.PeakMemory())(t); after > before+32<<20 {
		t.Errorf("%d MB before, %d MB after", before>>20, after>>20)
	}
}

// pour sends a body of zeros.
func pour(w io.Writer, path string, size int, announced bool) {
	chunk := make([]byte, 64<<10)
	head, before, after := fmt.Sprintf("Content-Length: %d", size), "", ""
	if !announced {
		head, before, after = "Transfer-Encoding: chunked", fmt.Sprintf("%x\r\n", len(chunk)), "\r\n"
	}
	_, err := fmt.Fprintf(w, "POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", path, head)
	for sent := 0; sent < size && err == nil; sent += len(chunk) {
		_, err = fmt.Fprintf(w, "%s%s%s", before, chunk, after)
	}
}

// TestSlowWriters keeps connections open by an octet now and then, in the header
// and in the body. Each is cut off, after 5 s and 15 s as the listener says, which
// no configuration changes; meanwhile others are served.
//
// Covers: S-181
func TestSlowWriters(t *testing.T) {
	t.Parallel()
	d := at(t, "many")
	path := must(url.Parse(d.URL))(t).Path + "?operation=PKIOperation"
	from := logSize(t)
	type slow struct {
		*tls.Conn
		begin, octet, why string
	}
	var all []slow
	for range 8 {
		all = append(all, slow{dial(t, d), "POST " + path + " HTTP/1.1\r\nHost: x\r\nX-Slow: ", "a", ""},
			slow{dial(t, d), "POST " + path + " HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", "0", "message was cut off"})
	}
	type end struct {
		rest   string
		source string
		why    string
	}
	ends := make(chan error, 1)
	var got []end
	go func() {
		var errs []error
		got, errs = together(len(all), func(i int) (end, error) {
			s := all[i]
			rest, err := dribble(s.Conn, s.begin, s.octet)
			return end{rest, s.LocalAddr().String(), s.why}, err
		})
		if len(errs) > 0 {
			ends <- fmt.Errorf("%d are not cut off: %w", len(errs), errs[0])
		}
		close(ends)
	}()
	const cn = "meanwhile.demo.example"
	must(enroll(t, d, keys[0], cn, challenge(t, "many", cn).Challenge))(t)
	if err := <-ends; err != nil {
		t.Fatal(err)
	}
	why := map[string]string{}
	for _, r := range records(t, from) {
		if r.Event == "message" {
			why[r.Actor.Source] = r.Object.Why
		}
	}
	for _, e := range got {
		if why[e.source] != e.why || (e.why != "") != strings.HasPrefix(e.rest, "HTTP/1.1 400 ") {
			t.Errorf("it was told %q, and the log says %q, not %q", e.rest, why[e.source], e.why)
		}
	}
}

// dribble writes an octet now and then until the other side has had enough, and
// returns what that says. It is an error if it has not within 40 s.
func dribble(conn net.Conn, begin, octet string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(40 * time.Second)); err != nil {
		return "", err
	}
	done := make(chan struct{})
	go func() {
		_, err := io.WriteString(conn, begin)
		for err == nil {
			select {
			case <-done:
				return
			case <-time.After(200 * time.Millisecond):
				_, err = io.WriteString(conn, octet)
			}
		}
	}()
	rest, err := io.ReadAll(conn)
	close(done)
	if e, ok := err.(net.Error); ok && e.Timeout() { //nolint:errorlint // a net.Conn returns it as it is
		return string(rest), err
	}
	return string(rest), nil // the end, or a reset, which is one too
}
