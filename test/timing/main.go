// Command timing measures whether the time of an answer tells what was wrong with a
// message: it sends messages that prove nothing, of each class by turns, and reports
// Welch's t for each pair of classes. Above 4.5 a pair is told apart.
//
// # What a caller may rely on
//
// The service is whole: roles as processes, keys on a token, TLS. Only the number of
// broken envelopes that a source may send is lifted. What is measured is what a
// client sees, from its first octet to the last one of the answer, which the service
// sends at the next multiple of 50 ms; with -serial also the time before that wait, by
// a gate in this process whose clock is read. That one may differ between classes:
// the wait is what hides it. The answers are compared too, octet for octet but for
// what has to be fresh.
//
// # What it does not protect against
//
// Somebody with far more messages than -n, whom the budget of broken envelopes stops;
// and a service under so much load that answers miss the first multiple of 50 ms:
// how many do is in the report.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/postern-pki/postern/test/site"
)

// told is the t above which two classes count as told apart, as in the usual test for
// leaks (ISO/IEC 17825).
const told = 4.5

// fewest is how many messages of a class there have to be: of fewer a large t is chance.
const fewest = 50

var errTold = errors.New("classes are told apart by time")

type settings struct {
	n, inFlight, pool, serial int
}

func main() {
	var s settings
	flag.IntVar(&s.n, "n", 5000, "messages of each class")
	flag.IntVar(&s.inFlight, "in-flight", 8, "messages that are under way at a time")
	flag.IntVar(&s.pool, "pool", 40, "different messages of each class")
	flag.IntVar(&s.serial, "serial", 0, "messages of each class, one at a time, whose time before the wait is measured too")
	flag.Parse()
	if s.n < fewest || s.serial > 0 && s.serial < fewest || s.inFlight < 1 || s.pool < 1 {
		fmt.Fprintf(os.Stderr, "timing: fewer than %d messages of a class tell nothing, and each other number is 1 at least\n", fewest)
		os.Exit(2)
	}
	if err := run(context.Background(), s); err != nil {
		fmt.Fprintln(os.Stderr, "timing:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, set settings) error {
	tmp, err := os.MkdirTemp("", "postern-timing-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	bin, end, err := site.Build(ctx)
	if err != nil {
		return err
	}
	defer end()
	root, err := site.Root()
	if err != nil {
		return err
	}
	s, _, err := site.Make(ctx, filepath.Join(tmp, "site"), site.Options{
		Bin: bin, Plan: filepath.Join(root, "hsm/ceremony/scripts/demo.yaml"), Profiles: profiles(), DevicePort: "0", OperatorPort: "0",
	})
	if err != nil {
		return err
	}
	if err := lift(s); err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	defer func() { _ = s.Kill() }()
	classes, d, err := makeClasses(ctx, s, set.pool)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := measure(ctx, d, classes, set); err != nil {
		return err
	}
	fmt.Printf("%d messages of each of %d classes, %d under way at a time, in %v\n\n", set.n, len(classes), set.inFlight, time.Since(began).Round(time.Second))
	fmt.Println("Time of the answer at the client, which is sent at the next multiple of 50 ms:")
	worst := report(os.Stdout, classes)
	if set.serial > 0 {
		if err := s.Stop(); err != nil {
			return err
		}
		if err := before(ctx, s, classes, set.serial); err != nil {
			return err
		}
	}
	if worst >= told {
		return fmt.Errorf("%w: t is %.2f", errTold, worst)
	}
	return nil
}

// profiles let one key have many subjects, and a subject many certificates.
func profiles() string {
	return strings.NewReplacer("reuse: same-subject", "reuse: any", "active_per_subject: 10", "active_per_subject: 1000000").Replace(site.Profiles)
}

// lift takes the budget of broken envelopes away.
func lift(s *site.Site) error {
	text, err := os.ReadFile(s.Config())
	if err != nil {
		return err
	}
	const was, is = "broken_per_minute: 100000", "broken_per_minute: 1000000"
	if !strings.Contains(string(text), was) {
		return fmt.Errorf("%s has no %q", s.Config(), was)
	}
	return os.WriteFile(s.Config(), []byte(strings.Replace(string(text), was, is, 1)), 0o600)
}

// measure sends all messages, the classes in another order in each round.
func measure(ctx context.Context, d *site.Device, classes []*class, set settings) error {
	jobs := make(chan *class)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	for range set.inFlight {
		group.Go(func() {
			for c := range jobs {
				if err := c.send(ctx, d); err != nil {
					cancel(fmt.Errorf("%s: %w", c.name, err))
				}
			}
		})
	}
	for range set.n {
		for _, i := range rand.Perm(len(classes)) {
			if ctx.Err() == nil {
				jobs <- classes[i]
			}
		}
	}
	close(jobs)
	group.Wait()
	return context.Cause(ctx)
}
