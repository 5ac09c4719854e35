package appliance

import (
	"context"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/audit"
)

// onLink is a connection that was made already.
type onLink chan net.Conn

func (c onLink) Dial(ctx context.Context) (net.Conn, error) {
	select {
	case conn := <-c:
		return conn, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pair is the two ends of a link.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fa, fb, err := link.Pair(syscall.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	ends := [2]net.Conn{}
	for i, f := range []*os.File{fa, fb} {
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return ends[0], ends[1]
}

// The devices' gate was taken over, and says that an administrator asks: it is
// refused and recorded. The same call by the operators' gate is carried out.
func TestOperatorsActsComeFromTheOperatorsGateAlone(t *testing.T) {
	dir := t.TempDir()
	l, err := audit.Open(t.Context(), audit.Options{Dir: dir, Origin: "corp.example/log", Genesis: func() (audit.Entry, error) {
		return audit.Entry{Outcome: "ok", Actor: audit.Actor{Kind: "system"}}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close(context.Background()) }()
	a := &Authority{operators: operator.New(operator.Options{
		Log: l, Now: time.Now, Zap: zap.NewNop(), Status: func(context.Context) operator.Status { return operator.Status{} },
		Rules: acts.Rules{People: []acts.Person{{Name: "root", ID: "uid:0", Roles: []acts.Role{acts.Administrator}}}},
	})}
	hello := func(role string) link.Hello { return link.Hello{Role: role, Build: "test", Config: "test"} }
	s := link.NewServer(link.ServerOptions{Self: hello(rpc.RoleAuthority), Verbs: a.Verbs().Table(), Log: zap.NewNop()})
	for role, code := range map[string]int{rpc.RoleOperators: http.StatusOK, rpc.RoleDevices: http.StatusForbidden} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		near, far := pair(t)
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = s.Serve(ctx, far, role) // ends with the client
		}()
		conns := make(onLink, 1)
		conns <- near
		gate := rpc.NewAuthority(link.ClientOptions{Self: hello(role), Dial: conns, Log: zap.NewNop()})
		if err := gate.Ready(ctx); err != nil {
			t.Fatal(err)
		}
		answer, err := gate.Operate(ctx, rpc.Call{
			Actor: rpc.Actor{Kind: "operator", ID: "uid:0", Source: "local"}, Allowed: true, Method: http.MethodGet, Path: "/api/v1/status",
		})
		if err != nil || answer.Code != code {
			t.Errorf("%s: %d %s, %v", role, answer.Code, answer.Body, err)
		}
		if err := gate.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		<-served
	}
	var refused []audit.Record
	if err := audit.Scan(dir, 0, func(l audit.Line) error {
		if l.Record.Event == "operator" || l.Record.Event == "security" {
			refused = append(refused, l.Record)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(refused) != 2 || refused[0].Outcome != "refused" || refused[0].Actor != (audit.Actor{Kind: "gate", ID: rpc.RoleDevices}) ||
		refused[0].Object.String("claims") != "uid:0" || refused[1].Outcome != "alert" {
		t.Errorf("recorded: %+v", refused)
	}
}
