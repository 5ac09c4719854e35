package sandbox_test

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"github.com/postern-pki/postern/appliance/sandbox"
	"github.com/postern-pki/postern/test/sandbox/foreign"
)

// An order is what a child process is told: what to bind itself to, and what to
// try then.
type order struct {
	Profile  *sandbox.Profile // nil: no sandbox at all
	Attempts []attempt
	Job      string            // something that has to go on working
	With     map[string]string // for the job
}

// A result is what came of it.
type result struct {
	Report  sandbox.Report
	Refusal string                    // Enter failed
	Errnos  map[string]map[string]int // by attempt, then by the thread that tried
	Said    map[string]string         // by the job
}

const orderVar = "POSTERN_TEST_SANDBOX_ORDER"

func TestMain(m *testing.M) {
	if text := os.Getenv(orderVar); text != "" {
		os.Exit(child(text))
	}
	os.Exit(m.Run())
}

// child has threads of three kinds, as a role has: those that were there before,
// those that begin later, and one that C code started.
func child(text string) int {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	before := make([]*thread, 3)
	for i := range before {
		before[i] = startThread()
	}
	c, err := foreign.Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r := result{Errnos: map[string]map[string]int{}, Said: map[string]string{}}
	answer := func() int {
		if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
			return 1
		}
		return 0
	}
	if o.Profile != nil {
		r.Report, err = sandbox.Enter(*o.Profile)
		if err != nil {
			r.Refusal = err.Error()
			return answer()
		}
	}
	after := startThread()
	for _, a := range o.Attempts {
		all := map[string]int{"after": after.try(a)}
		for i, t := range before {
			all["before "+strconv.Itoa(i)] = t.try(a)
		}
		switch a.Kind {
		case "socket":
			if a.Type == syscall.SOCK_STREAM {
				all["C"] = int(c.Socket(a.Number))
			}
		case "read":
			all["C"] = int(c.Open(a.Path))
		}
		r.Errnos[a.String()] = all
	}
	if o.Job != "" {
		jobs()[o.Job](o.With, r.Said)
	}
	return answer()
}

// A thread is one of the system's, which runs one goroutine and nothing else.
type thread struct {
	ask    chan attempt
	answer chan int
}

func startThread() *thread {
	t := &thread{ask: make(chan attempt), answer: make(chan int)}
	up := make(chan bool)
	go func() {
		runtime.LockOSThread()
		up <- true
		for a := range t.ask {
			t.answer <- int(a.try())
		}
	}()
	<-up
	return t
}

func (t *thread) try(a attempt) int {
	t.ask <- a
	return <-t.answer
}
