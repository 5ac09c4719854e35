package tokens_test

import (
	"bufio"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/softhsm"
	"github.com/postern-pki/postern/test/tokens"
)

// deadline is that of one operation in the worker.
const deadline = 2 * time.Second

// The worker's exit statuses.
const (
	wasHung    = 3
	notThere   = 4
	wasStopped = 0
)

func TestMain(m *testing.M) {
	if os.Getenv("POSTERN_WORKER_MODULE") != "" {
		os.Exit(work())
	}
	os.Exit(softhsm.Main(m))
}

// work is a process that holds the token and has eight callers use it, until its
// input ends or a call hangs. It writes a line for each hundred successes, and
// one for whatever a caller should not see.
func work() int {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	token, err := hsm.Open(ctx, hsm.Config{
		Module: os.Getenv("POSTERN_WORKER_MODULE"), Serial: os.Getenv("POSTERN_WORKER_SERIAL"),
		PIN: hsm.PINFromFile(os.Getenv("POSTERN_WORKER_PIN")), Deadline: deadline, Sessions: 8,
	})
	if err != nil {
		fmt.Println("away:", err)
		return notThere
	}
	var keys []*hsm.Key
	for label, p := range map[string]hsm.Purpose{"ca": hsm.CA, "sign": hsm.RASign, "dec": hsm.RADecrypt} {
		k, err := token.Key(ctx, hsm.KeySpec{Purpose: p, Label: label})
		if err != nil {
			fmt.Println("away:", err)
			return notThere
		}
		keys = append(keys, k)
	}
	var good atomic.Uint64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for ctx.Err() == nil {
				for _, k := range keys {
					began := time.Now()
					err := use(k)
					if d := time.Since(began); d > deadline+5*time.Second {
						fmt.Println("FAULT: a caller waited for", d)
					}
					switch {
					case err == nil:
						if n := good.Add(1); n%100 == 0 {
							fmt.Println("good")
						}
					case errors.Is(err, hsm.ErrPIN), errors.Is(err, hsm.ErrPINCount), errors.Is(err, hsm.ErrKeyChanged), errors.Is(err, hsm.ErrTokenChanged):
						fmt.Println("FAULT:", err)
						return
					default:
						time.Sleep(time.Millisecond)
					}
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); close(ended) }()
	select {
	case <-token.Hung(): // what the keyholder does
		return wasHung
	case <-ended:
	}
	stop()
	all.Wait()
	s := token.Stats()
	fmt.Printf("stats: lost %d, reloads %d, logins %d\n", s.Lost, s.Reloads, s.Login)
	return wasStopped
}

func use(k *hsm.Key) error {
	if k.Purpose() == hsm.RADecrypt {
		_, err := k.Decrypt(nil, make([]byte, 256), &hsm.SessionKeyOptions{SessionKeyLen: 16})
		return err
	}
	_, err := k.Sign(nil, make([]byte, 32), crypto.SHA256)
	return err
}

// A worker is that process, started again by the test whenever it ends.
type worker struct {
	remote *tokens.Remote
	env    []string
	good   atomic.Uint64
	hung   atomic.Uint64
	mu     sync.Mutex
	faults []string
	said   []string
	stop   chan struct{}
	done   chan struct{}
}

func startWorker(t *testing.T, r *tokens.Remote, soft softhsm.Token) *worker {
	t.Helper()
	w := &worker{remote: r, stop: make(chan struct{}), done: make(chan struct{})}
	w.env = append(r.Env(), "POSTERN_WORKER_MODULE="+r.Module, "POSTERN_WORKER_SERIAL="+soft.Serial, "POSTERN_WORKER_PIN="+soft.PINFile(t))
	go func() {
		defer close(w.done)
		for {
			status := w.run()
			switch status {
			case wasHung:
				w.hung.Add(1)
			case notThere:
				time.Sleep(100 * time.Millisecond)
			case wasStopped:
			default:
				w.fault(fmt.Sprintf("ended with status %d", status))
			}
			select {
			case <-w.stop:
				return
			default:
			}
		}
	}()
	return w
}

func (w *worker) fault(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, s)
}

func (w *worker) run() int {
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = w.env, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		w.fault(err.Error())
		return 0
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.fault(err.Error())
		return 0
	}
	if err := cmd.Start(); err != nil {
		w.fault(err.Error())
		return 0
	}
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-w.stop:
		case <-over:
		}
		_ = in.Close()
	}()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch line := lines.Text(); {
		case line == "good":
			w.good.Add(1)
		case strings.HasPrefix(line, "FAULT"):
			w.fault(line)
		default:
			w.mu.Lock()
			w.said = append(w.said, line)
			w.said = w.said[max(0, len(w.said)-10):]
			w.mu.Unlock()
		}
	}
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

// progress waits for the worker to do something useful, and says how long it took.
func (w *worker) progress(t *testing.T) time.Duration {
	t.Helper()
	began := time.Now()
	for was := w.good.Load(); w.good.Load() < was+2; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			t.Fatalf("not back; %v, %v", w.faults, w.said)
		}
	}
	return time.Since(began)
}

// end ends the worker, and fails for what its callers should not have seen.
func (w *worker) end(t *testing.T) {
	t.Helper()
	close(w.stop)
	<-w.done
	for _, f := range w.faults {
		t.Error(f)
	}
}

// served has a worker at a token behind a server.
func served(t *testing.T) (*tokens.Remote, *worker) {
	t.Helper()
	soft := softhsm.New(t)
	_, err := hsm.Generate(t.Context(), hsm.Config{Module: soft.Module, Serial: soft.Serial, PIN: hsm.PINFrom(hsm.NewPIN([]byte(soft.PIN)))}, []hsm.KeyPlan{
		{Purpose: hsm.CA, Label: "ca", Algorithm: hsm.P256},
		{Purpose: hsm.RASign, Label: "sign", Algorithm: hsm.RSA2048},
		{Purpose: hsm.RADecrypt, Label: "dec", Algorithm: hsm.RSA2048},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := tokens.NewRemote(t, soft)
	r.Start(t)
	w := startWorker(t, r, soft)
	return r, w
}

// TestTheServerOfANetworkHSMDies under eight callers, again and again: nobody is
// kept waiting beyond the deadline, and the service is back by itself, or its
// process ends and the next one is.
func TestTheServerOfANetworkHSMDies(t *testing.T) {
	rounds := 10
	if os.Getenv("POSTERN_SOAK") == "1" {
		rounds = 50
	}
	r, w := served(t)
	w.progress(t)
	var back []time.Duration
	for range rounds {
		r.Kill(t)
		time.Sleep(200 * time.Millisecond) // some attempts find nothing
		r.Start(t)
		back = append(back, w.progress(t))
	}
	w.end(t)
	slices.Sort(back)
	t.Logf("back after %v to %v, median %v; %d processes ended because a call hung; %v",
		back[0].Round(time.Millisecond), back[len(back)-1].Round(time.Millisecond), back[len(back)/2].Round(time.Millisecond), w.hung.Load(), w.said)
}

// TestTheServerOfANetworkHSMHangs: no call comes back, so the process ends; the next
// one serves when the server does.
func TestTheServerOfANetworkHSMHangs(t *testing.T) {
	r, w := served(t)
	w.progress(t)
	for range 2 {
		ended := w.hung.Load()
		r.Freeze(t)
		for end := time.Now().Add(time.Minute); w.hung.Load() == ended; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the process did not end")
			}
		}
		r.Thaw(t)
		w.progress(t)
	}
	w.end(t)
}
