package supervisor_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/postern-pki/postern/appliance/link"
	"github.com/postern-pki/postern/appliance/supervisor"
)

const verb link.Verb = 1

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && (os.Args[1] == "server" || os.Args[1] == "client") {
		if err := child(os.Args[1]); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child is one of two roles. The server ends the first link after one call, and
// lives on; the client is ready when it was answered three times.
func child(role string) error {
	_, _ = fmt.Fprintln(os.Stdout, role, os.Getpid())
	hands, err := link.NewHands(os.NewFile(supervisor.ControlFD, "control"))
	if err != nil {
		return err
	}
	in, err := link.Inherit(hands, func() { os.Exit(0) })
	if err != nil {
		return err
	}
	self, calls := link.Hello{Role: role}, make(chan struct{}, 3)
	if role == "client" {
		c := link.NewClient(link.ClientOptions{Self: self, Role: "server", Dial: in.Dialer("server")})
		for n := 0; n < 3; {
			if err := c.Ready(context.Background()); err != nil {
				return err
			}
			if _, err := c.Call(context.Background(), verb, new(link.Encoder)); err == nil {
				n++
			}
		}
		if err := in.Ready(); err != nil {
			return err
		}
		select {}
	}
	s := link.NewServer(link.ServerOptions{Self: self, Verbs: map[string]map[link.Verb]link.Handler{"client": {
		verb: {Ordered: true, Do: func(context.Context, *link.Decoder, *link.Encoder) error {
			calls <- struct{}{}
			return nil
		}},
	}}})
	if err := in.Ready(); err != nil {
		return err
	}
	for first := true; ; first = false {
		conn, from, err := in.Accept(context.Background())
		if err != nil {
			return err
		}
		if first {
			go func() {
				<-calls
				_ = conn.Close()
				for range calls { // the others are only taken
				}
			}()
		}
		go func() { _ = s.Serve(context.Background(), conn, from) }()
	}
}

// run has the two roles supervised until the test ends. said are the children's
// words.
func run(t *testing.T) (said <-chan string, ready <-chan struct{}) {
	t.Helper()
	return runProgram(t, os.Args[0])
}

func runProgram(t *testing.T, program string) (said <-chan string, ready <-chan struct{}) {
	t.Helper()
	r, w := io.Pipe()
	words, served, ended := make(chan string, 100), make(chan struct{}), make(chan error, 1)
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			words <- s.Text()
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		ended <- supervisor.Run(ctx, supervisor.Options{
			Program: program, Out: w, Log: zap.NewNop(), Ready: func() { close(served) },
			Roles: []supervisor.Role{{Name: "server", Args: []string{"server"}}, {Name: "client", Args: []string{"client"}, Calls: []string{"server"}}},
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil { // the children do not know how to stop in order
			t.Log(err)
		}
		_ = w.Close()
	})
	return words, served
}

// A link that is lost although both ends live is made again.
func TestALinkThatIsLostIsMadeAgain(t *testing.T) {
	_, ready := run(t)
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		t.Fatal("the client has no link to a server that lives")
	}
}

// A child that cannot be started again now, such as for want of memory, is started
// when it can be.
func TestAChildThatCannotBeStartedNowIsStartedLater(t *testing.T) {
	program := filepath.Join(t.TempDir(), "roles")
	if err := os.Symlink(os.Args[0], program); err != nil {
		t.Fatal(err)
	}
	said, ready := runProgram(t, program)
	first := clientOf(t, said)
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		t.Fatal("the roles do not serve")
	}
	if err := os.Rename(program, program+".away"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond) // it is tried after 50 ms
	if err := os.Rename(program+".away", program); err != nil {
		t.Fatal(err)
	}
	if clientOf(t, said) == first {
		t.Error("the client that was killed speaks")
	}
}

// clientOf waits for the client's first words, its process.
func clientOf(t *testing.T, said <-chan string) int {
	t.Helper()
	for {
		select {
		case line := <-said:
			if p, ok := strings.CutPrefix(line, "client "); ok {
				n, err := strconv.Atoi(p)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		case <-time.After(30 * time.Second):
			t.Fatal("no client is started")
		}
	}
}

// Nothing is left of a child that was killed: no descriptor, no process.
func TestNothingIsLeftOfChildrenThatWereKilled(t *testing.T) {
	said, ready := run(t)
	first := clientOf(t, said)
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		t.Fatal("the roles do not serve")
	}
	open := func() int {
		all, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	before, killed := open(), []int{first}
	for range 12 {
		if err := syscall.Kill(killed[len(killed)-1], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed = append(killed, clientOf(t, said))
		time.Sleep(300 * time.Millisecond) // it counts as good after a while
	}
	if after := open(); after > before+2 {
		t.Errorf("%d descriptors are open after 12 children, %d before", after, before)
	}
	for _, p := range killed[:len(killed)-1] {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", p)); err == nil {
			t.Errorf("child %d is left", p)
		}
	}
}
