package gate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/gate"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/tls/listen"
)

// A desk is the other end: it keeps what it gets, as it comes over a link.
type desk struct {
	t     *testing.T
	calls []rpc.Call
	err   error
}

func (d *desk) Operate(_ context.Context, c rpc.Call) (rpc.Answer, error) {
	data, err := c.AppendBinary(nil)
	if err != nil {
		d.t.Errorf("a call that no link takes: %v", err)
	}
	if c, err = rpc.DecodeCall(data); err != nil {
		d.t.Error(err)
	}
	d.calls = append(d.calls, c)
	return rpc.Answer{Code: http.StatusTeapot, Body: []byte(`{"short":"and stout"}`)}, d.err
}

func alice(*http.Request) (rpc.Actor, bool) {
	return rpc.Actor{Kind: "operator", ID: "alice", Source: "test"}, true
}

func TestARequestBecomesACall(t *testing.T) {
	who, _ := alice(nil)
	long := strings.Repeat("A", 60_000)
	for name, tt := range map[string]struct {
		r    *http.Request
		want rpc.Call
	}{
		"a read": {
			httptest.NewRequest(http.MethodGet, "/api/v1/certificates/a%2Fb?subject=a%20b&x", nil),
			rpc.Call{Method: "GET", Path: "/api/v1/certificates/a/b", Query: "subject=a%20b&x"},
		},
		"an act": {
			httptest.NewRequest(http.MethodPost, "/api/v1/challenges", strings.NewReader("[]")),
			rpc.Call{Method: "POST", Path: "/api/v1/challenges", Body: []byte("[]")},
		},
		"a path that is not clean": {httptest.NewRequest(http.MethodGet, "//x/../api", nil), rpc.Call{Method: "GET", Path: "//x/../api"}},
		"a long path":              {httptest.NewRequest(http.MethodGet, "/"+long, nil), rpc.Call{Method: "GET", Path: "/" + long[:rpc.MaxPath-1], Fault: rpc.TooLarge}},
		"a long query":             {httptest.NewRequest(http.MethodGet, "/?"+long, nil), rpc.Call{Method: "GET", Path: "/", Query: long[:rpc.MaxPath], Fault: rpc.TooLarge}},
		"a long method":            {httptest.NewRequest(long, "/", nil), rpc.Call{Method: long[:rpc.MaxMethod], Path: "/", Fault: rpc.TooLarge}},
		"the longest body": {
			httptest.NewRequest(http.MethodPut, "/", bytes.NewReader(make([]byte, rpc.MaxBody))),
			rpc.Call{Method: "PUT", Path: "/", Body: make([]byte, rpc.MaxBody)},
		},
		"a longer body": {
			httptest.NewRequest(http.MethodPut, "/", bytes.NewReader(make([]byte, rpc.MaxBody+1))),
			rpc.Call{Method: "PUT", Path: "/", Fault: rpc.TooLarge},
		},
		"a body that breaks off": {
			httptest.NewRequest(http.MethodPut, "/", io.MultiReader(strings.NewReader("["), broken{})),
			rpc.Call{Method: "PUT", Path: "/", Fault: rpc.Broken},
		},
		"what another site sends": {crossSite(), rpc.Call{Method: "POST", Path: "/api/v1/challenges", Fault: rpc.CrossSite}},
	} {
		t.Run(name, func(t *testing.T) {
			d := &desk{t: t}
			w := httptest.NewRecorder()
			gate.Operators(d, alice, zap.NewNop()).ServeHTTP(w, tt.r)
			tt.want.Actor, tt.want.Allowed = who, true
			if len(d.calls) != 1 || !reflect.DeepEqual(d.calls[0], tt.want) {
				t.Errorf("%.500v", d.calls)
			}
			if w.Code != http.StatusTeapot || w.Body.String() != `{"short":"and stout"}` || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("%d %v %q", w.Code, w.Header(), w.Body)
			}
		})
	}
}

func crossSite() *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/api/v1/challenges", strings.NewReader("[]"))
	r.Header.Set("Origin", "https://evil.example")
	return r
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// A stranger's request is told, and nothing that they sent is taken in.
func TestAStrangersBodyIsNotRead(t *testing.T) {
	d := &desk{t: t}
	nobody := func(*http.Request) (rpc.Actor, bool) {
		return rpc.Actor{Kind: "operator", Source: "192.0.2.1:9"}, false
	}
	r := httptest.NewRequest(http.MethodPost, "/api/v1/challenges", broken{})
	gate.Operators(d, nobody, zap.NewNop()).ServeHTTP(httptest.NewRecorder(), r)
	want := rpc.Call{Actor: rpc.Actor{Kind: "operator", Source: "192.0.2.1:9"}, Method: "POST", Path: "/api/v1/challenges"}
	if len(d.calls) != 1 || !reflect.DeepEqual(d.calls[0], want) {
		t.Errorf("%v", d.calls)
	}
}

// Without the authority the gate has nothing to say but that.
func TestNobodyAtTheOtherEnd(t *testing.T) {
	d := &desk{t: t, err: errors.New("the link's own words")}
	w := httptest.NewRecorder()
	gate.Operators(d, alice, zap.NewNop()).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/status", nil))
	var p struct{ Error, Hint string }
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Error == "" || p.Hint == "" || strings.Contains(w.Body.String(), "link's own") {
		t.Errorf("%v %s", err, w.Body)
	}
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
}

func TestTheKernelNamesALocalOperator(t *testing.T) {
	d := &desk{t: t}
	path := filepath.Join(t.TempDir(), "operators.sock")
	s, err := listen.NewLocal(path, 0o600, gate.Operators(d, gate.LocalActor, zap.NewNop()), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	resp, err := client.Get("http://local/api/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if err := errors.Join(s.Close(), <-served); err != nil {
		t.Error(err)
	}
	want := rpc.Actor{Kind: "operator", ID: "uid:" + strconv.Itoa(os.Getuid()), Source: "local"}
	if len(d.calls) != 1 || d.calls[0].Actor != want || !d.calls[0].Allowed {
		t.Errorf("%+v", d.calls)
	}
	for name, actor := range map[string]func(*http.Request) (rpc.Actor, bool){"local": gate.LocalActor, "certificate": gate.CertificateActor} {
		if who, ok := actor(httptest.NewRequest(http.MethodGet, "/", nil)); ok {
			t.Errorf("%s: a request from nowhere is %+v's", name, who)
		}
	}
}
