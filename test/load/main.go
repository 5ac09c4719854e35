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
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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
	steps := flag.String("clients", "1,8,32", "`numbers` of clients, a step each")
	floor := flag.String("floor", "", "measure the floor of the site in this `folder`, and print it (used by the command itself)")
	status := flag.Bool("status", false, "measure revocation and OCSP in place of enrollment")
	one := flag.String("one", "", "serve by one process with this configuration `file` (used by the command itself)")
	flag.Parse()
	var err error
	switch ctx := context.Background(); {
	case *floor != "":
		err = measureFloor(ctx, *floor)
	case *one != "":
		err = oneProcess(ctx, *one)
	case *status:
		err = measureStatus(ctx)
	default:
		err = run(ctx, *n, *steps)
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

func run(ctx context.Context, n int, steps string) error {
	var clients []int
	for text := range strings.SplitSeq(steps, ",") {
		c, err := strconv.Atoi(text)
		if err != nil || c < 1 {
			return fmt.Errorf("-clients %s: a list of numbers", steps)
		}
		clients = append(clients, c)
	}
	tmp, err := os.MkdirTemp("", "postern-load-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := slack(); err != nil {
		return err
	}
	serve := func(name string, by func(string) *exec.Cmd) (*site.Site, error) {
		s, _, err := site.Make(ctx, filepath.Join(tmp, name), site.Options{
			Bin: bin, Plan: "hsm/ceremony/scripts/demo.yaml", Profiles: profiles(), DevicePort: "0", OperatorPort: "0", Serve: by,
		})
		if err != nil {
			return nil, err
		}
		return s, s.Start(ctx)
	}
	roles, err := serve("roles", nil)
	if err != nil {
		return err
	}
	defer func() { _ = roles.Stop() }()
	one, err := serve("one", serveOne(self))
	if err != nil {
		return err
	}
	defer func() { _ = one.Stop() }()
	f, err := startFloor(ctx, roles)
	if err != nil {
		return err
	}
	defer f.stop()
	memory := watchMemory(ctx, roles)
	if err := compare(ctx, f, one, roles, n, clients); err != nil {
		return err
	}
	most, err1 := memory()
	peak, err2 := roles.PeakMemory()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	fmt.Printf("peak resident memory of all roles: %.0f MB; with what they share counted for each: %.0f MB\n", float64(most)/1e6, float64(peak)/1e6)
	fmt.Println("goals: CPU at most 1.60 times the floor in one process, 1.75 by roles, which may add 0.15; throughput at 8 and 32 clients at least 0.80 of the floor's; memory at most 150 MB")
	return nil
}

// watchMemory looks twice a second, until the function that it returns is called,
// which tells the most that was seen.
func watchMemory(ctx context.Context, s *site.Site) func() (uint64, error) {
	ctx, stop := context.WithCancel(ctx)
	type seen struct {
		most uint64
		err  error
	}
	result := make(chan seen, 1)
	go func() {
		var v seen
		for v.err == nil {
			var now uint64
			now, v.err = s.Memory()
			v.most = max(v.most, now)
			select {
			case <-time.After(500 * time.Millisecond):
				continue
			case <-ctx.Done():
			}
			break
		}
		result <- v
	}()
	return func() (uint64, error) {
		stop()
		v := <-result
		return v.most, v.err
	}
}

// compare prints a line for each number of clients, and one for all.
func compare(ctx context.Context, f *floor, one, roles *site.Site, n int, steps []int) error {
	fmt.Printf("%8s | %9s | %17s | %17s %6s | %9s %17s | %8s %8s\n", "clients", "floor CPU", "one process", "roles", "added", "floor/s", "roles/s", "p50", "p99")
	line := func(what string, r result) {
		floor := r.floor.cpu()
		fmt.Printf("%8s | %6.2f ms | %6.2f ms %7.2f | %6.2f ms %7.2f %6.2f | %9.0f %9.0f %7.2f | %5.1f ms %5.1f ms\n", what, floor*1e3, r.one.cpu()*1e3, r.one.cpu()/floor,
			r.roles.cpu()*1e3, r.roles.cpu()/floor, (r.roles.cpu()-r.one.cpu())/floor, r.floor.rate(), r.roles.rate(), r.roles.rate()/r.floor.rate(), r.roles.quantile(0.50)*1e3, r.roles.quantile(0.99)*1e3)
	}
	var all result
	for _, clients := range steps {
		r, err := takeTurns(ctx, f, one, roles, clients, n)
		if err != nil {
			return err
		}
		line(strconv.Itoa(clients), r)
		for _, name := range slices.Sorted(maps.Keys(r.roles.by)) {
			if ms := r.roles.by[name] / float64(r.roles.n) * 1e3; ms >= 0.005 {
				fmt.Printf("%8s | %s %.2f ms\n", "", name, ms)
			}
		}
		all.floor.add(r.floor)
		all.one.add(r.one)
		all.roles.add(r.roles)
	}
	line("all", all)
	return nil
}

// A result is what was measured at one number of clients.
type result struct{ floor, one, roles figure }

// rounds is how often Floor, one process and roles take turns at each number of clients.
const rounds = 6

// takeTurns measures all three in turns, n enrollments of each.
func takeTurns(ctx context.Context, f *floor, one, roles *site.Site, clients, n int) (r result, err error) {
	first, err := newLoad(ctx, one, clients, n)
	if err != nil {
		return r, err
	}
	second, err := newLoad(ctx, roles, clients, n)
	if err != nil {
		return r, err
	}
	for i := range rounds {
		from, to := i*n/rounds, (i+1)*n/rounds
		if err := f.measure(clients, to-from, &r.floor); err != nil {
			return r, err
		}
		if err := first.enroll(ctx, from, to, &r.one); err != nil {
			return r, err
		}
		if err := second.enroll(ctx, from, to, &r.roles); err != nil {
			return r, err
		}
	}
	return r, nil
}

// A figure is the sum of its rounds.
type figure struct {
	n         int
	used      float64            // seconds of CPU
	by        map[string]float64 // of each process of the service
	wall      float64            // seconds
	latencies []float64
}

func (f *figure) add(g figure) {
	f.n, f.used, f.wall, f.latencies = f.n+g.n, f.used+g.used, f.wall+g.wall, append(f.latencies, g.latencies...)
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
	only := cfg.Tokens[0]
	token, err := hsm.Open(ctx, hsm.Config{Module: only.Module, Serial: only.Serial, PIN: hsm.PINFromFile(only.PINPath), Deadline: time.Minute})
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
