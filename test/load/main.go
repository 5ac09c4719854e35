// Command load measures the service against the floor: the three private-key
// operations of an enrollment alone, on the same token, in the same run.
//
// # What a caller may rely on
//
// Figures are CPU times of the measured process, not of this one, and every
// answer that is counted is a SUCCESS. Floor and service take turns, so that a
// machine that gets slower or faster does so for both.
//
// # What it does not protect against
//
// A machine that does something else meanwhile: read the ratios, not the times.
package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/hsm"
	"github.com/postern-pki/postern/test/site"
)

func main() {
	n := flag.Int("n", 1500, "enrollments at each step")
	floor := flag.String("floor", "", "measure the floor of the site in this `folder`, and print it (used by the command itself)")
	flag.Parse()
	var err error
	if *floor != "" {
		err = measureFloor(context.Background(), *floor)
	} else {
		err = run(context.Background(), *n)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// profiles have no rate limit and count nothing but challenges.
func profiles() string {
	return strings.NewReplacer("reuse: same-subject", "reuse: any", "active_per_subject: 10", "active_per_subject: 1000000").Replace(site.Profiles)
}

func run(ctx context.Context, n int) error {
	tmp, err := os.MkdirTemp("", "postern-load-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	s, _, err := site.Make(ctx, filepath.Join(tmp, "site"), site.Options{
		Bin: bin, Plan: "hsm/ceremony/scripts/demo.yaml", Profiles: profiles(), DevicePort: "0", OperatorPort: "0",
	})
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	defer func() { _ = s.Stop() }()
	f, err := startFloor(ctx, s)
	if err != nil {
		return err
	}
	defer f.stop()
	fmt.Printf("%8s %12s %12s %8s %10s %10s %8s %8s %8s\n", "clients", "floor CPU", "server CPU", "ratio", "floor/s", "server/s", "ratio", "p50", "p99")
	var allFloor, allServer figure
	for _, clients := range []int{1, 8, 32} {
		floor, server, err := takeTurns(ctx, s, f, clients, n)
		if err != nil {
			return err
		}
		allFloor.n, allFloor.used = allFloor.n+floor.n, allFloor.used+floor.used
		allServer.n, allServer.used = allServer.n+server.n, allServer.used+server.used
		fmt.Printf("%8d %9.2f ms %9.2f ms %8.2f %10.0f %10.0f %8.2f %5.1f ms %5.1f ms\n", clients, floor.cpu()*1e3, server.cpu()*1e3, server.cpu()/floor.cpu(),
			floor.rate(), server.rate(), server.rate()/floor.rate(), server.quantile(0.50)*1e3, server.quantile(0.99)*1e3)
	}
	fmt.Printf("%8s %9.2f ms %9.2f ms %8.2f\n", "all", allFloor.cpu()*1e3, allServer.cpu()*1e3, allServer.cpu()/allFloor.cpu())
	peak, err := s.PeakMemory()
	if err != nil {
		return err
	}
	fmt.Printf("peak resident memory: %.0f MB\n", float64(peak)/1e6)
	fmt.Println("goals: CPU ratio at most 1.60, throughput ratio at 8 and 32 clients at least 0.80, memory under 100 MB")
	return nil
}

// rounds is how often floor and service take turns at each number of clients.
const rounds = 6

// takeTurns measures both in turns, n enrollments in all.
func takeTurns(ctx context.Context, s *site.Site, f *floor, clients, n int) (floor, server figure, err error) {
	l, err := newLoad(ctx, s, clients, n)
	if err != nil {
		return floor, server, err
	}
	for i := range rounds {
		if err := f.measure(clients, (i+1)*n/rounds-i*n/rounds, &floor); err != nil {
			return floor, server, err
		}
		if err := l.enroll(ctx, i*n/rounds, (i+1)*n/rounds, &server); err != nil {
			return floor, server, err
		}
	}
	return floor, server, nil
}

// A figure is the sum of its rounds.
type figure struct {
	n         int
	used      float64 // seconds of CPU
	wall      float64 // seconds
	latencies []float64
}

func (f *figure) cpu() float64  { return f.used / float64(f.n) }
func (f *figure) rate() float64 { return float64(f.n) / f.wall }

func (f *figure) quantile(q float64) float64 {
	slices.Sort(f.latencies)
	return f.latencies[int(q*float64(len(f.latencies)-1))]
}

// A floor is a process of its own, so that its CPU is nothing but the floor.
type floor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startFloor(ctx context.Context, s *site.Site) (*floor, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f := &floor{cmd: exec.CommandContext(ctx, self, "-floor", s.Dir)}
	f.cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+s.Path("ceremony", "token", "softhsm2.conf"))
	f.cmd.Stderr = os.Stderr
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	f.out = bufio.NewReader(out)
	return f, f.cmd.Start()
}

func (f *floor) stop() {
	_ = f.in.Close() // ends it
	_ = f.cmd.Wait()
}

// measure adds one round of n.
func (f *floor) measure(workers, n int, sum *figure) error {
	var used, wall float64
	if _, err := fmt.Fprintln(f.in, workers, n); err != nil {
		return fmt.Errorf("the floor: %w", err)
	}
	line, err := f.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("the floor: %w", err)
	}
	if _, err := fmt.Sscan(line, &used, &wall); err != nil {
		return fmt.Errorf("the floor: %q: %w", line, err)
	}
	sum.n, sum.used, sum.wall = sum.n+n, sum.used+used, sum.wall+wall
	return nil
}

// measureFloor does the three operations alone: decrypt, certificate, CertRep.
// The token's own check of each signature is part of it. Each line of the standard
// input asks for a round.
func measureFloor(ctx context.Context, dir string) error {
	cfg, err := config.Load(filepath.Join(dir, "postern.yaml"))
	if err != nil {
		return err
	}
	token, err := hsm.Open(ctx, hsm.Config{Module: cfg.Token.Module, Serial: cfg.Token.Serial, PIN: hsm.PINFromFile(cfg.PINPath), Deadline: time.Minute})
	if err != nil {
		return err
	}
	defer func() { _ = token.Close() }()
	ca, err1 := token.Key(ctx, hsm.KeySpec{Purpose: hsm.CA, Label: "ca"})
	sign, err2 := token.Key(ctx, hsm.KeySpec{Purpose: hsm.RASign, Label: "ra-sign"})
	decrypt, err3 := token.Key(ctx, hsm.KeySpec{Purpose: hsm.RADecrypt, Label: "ra-decrypt"})
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	//lint:ignore SA1019 RFC 8894 has no other key transport
	envelope, err := rsa.EncryptPKCS1v15(rand.Reader, decrypt.Public().(*rsa.PublicKey), make([]byte, 16)) //nolint:staticcheck // as above
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte("floor"))
	once := func() error {
		_, err1 := decrypt.Decrypt(nil, envelope, &hsm.SessionKeyOptions{SessionKeyLen: 16})
		_, err2 := ca.Sign(nil, sum[:], crypto.SHA256)
		_, err3 := sign.Sign(nil, sum[:], crypto.SHA256)
		return errors.Join(err1, err2, err3)
	}
	for {
		var workers, n int
		if _, err := fmt.Scanln(&workers, &n); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		before, began := ownCPU(), time.Now()
		if err := parallel(workers, n, func(int) error { return once() }); err != nil {
			return err
		}
		fmt.Println(ownCPU()-before, time.Since(began).Seconds())
	}
}

// parallel runs f for 0 to n-1 in so many goroutines.
func parallel(workers, n int, f func(i int) error) error {
	jobs := make(chan int)
	errs := make(chan error, workers)
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for i := range jobs {
				if err := f(i); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		})
	}
	for i := range n {
		jobs <- i
	}
	close(jobs)
	group.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
