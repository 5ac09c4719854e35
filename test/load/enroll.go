package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// deviceKeys is how many keys the devices have together: making one for each
// would take longer than the measurement.
const deviceKeys = 32

// A load is so many clients, each with a connection that it keeps, and what they
// will send.
type load struct {
	site     *site.Site
	device   *site.Device
	clients  int
	messages []*site.Request
}

func newLoad(ctx context.Context, s *site.Site, clients, n int) (*load, error) {
	d, err := s.Device(ctx, "interop")
	if err != nil {
		return nil, err
	}
	messages, err := prepare(ctx, s, d, clients, n)
	if err != nil {
		return nil, err
	}
	_, err = d.Caps(ctx)
	return &load{s, d, clients, messages}, err
}

// enroll sends the messages from first to next, and adds the server's CPU time.
func (l *load) enroll(ctx context.Context, first, next int, sum *figure) error {
	took := make([]float64, next-first)
	before, err := cpuOfAll(l.site)
	if err != nil {
		return err
	}
	began := time.Now()
	err = parallel(l.clients, next-first, func(i int) error {
		m := l.messages[first+i]
		start := time.Now()
		reply, err := l.device.Post(ctx, m.DER)
		took[i] = time.Since(start).Seconds()
		if err != nil {
			return err
		}
		if i%50 == 0 { // opening each would measure the client
			_, err = client.Open(reply, m.Expect)
			return err
		}
		rep, err := client.Inspect(reply)
		if err == nil && rep.Status != scep.StatusSuccess {
			err = fmt.Errorf("request %d: pkiStatus %d", first+i, rep.Status)
		}
		return err
	})
	wall := time.Since(began).Seconds()
	if err != nil {
		return err
	}
	after, err := cpuOfAll(l.site)
	if sum.by == nil {
		sum.by = make(map[string]float64)
	}
	for name, used := range after {
		sum.by[name] += used - before[name]
		sum.used += used - before[name]
	}
	sum.n, sum.wall = sum.n+len(took), sum.wall+wall
	sum.latencies = append(sum.latencies, took...)
	return err
}

// prepare makes the requests before anything is measured.
func prepare(ctx context.Context, s *site.Site, d *site.Device, clients, n int) ([]*site.Request, error) {
	subjects := make([]string, n)
	for i := range subjects {
		subjects[i] = fmt.Sprintf("CN=l-%d-%d.demo.example", clients, i)
	}
	challenges, err := s.Challenges(ctx, "interop", subjects...)
	if err != nil {
		return nil, err
	}
	keys := make([]*rsa.PrivateKey, deviceKeys)
	certs := make([][]byte, deviceKeys)
	for i := range keys {
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, err
		}
		if certs[i], err = site.SelfSigned(keys[i], pkix.Name{CommonName: "device"}, time.Now(), time.Now().Add(time.Hour)); err != nil {
			return nil, err
		}
	}
	out := make([]*site.Request, n)
	return out, parallel(2, n, func(i int) error {
		key := keys[i%deviceKeys]
		csr, err := client.NewCSR(key, client.CSR{Subject: pkix.Name{CommonName: strings.TrimPrefix(subjects[i], "CN=")}, Challenge: []byte(challenges[i].Challenge)})
		if err != nil {
			return err
		}
		out[i], err = d.Request(client.Message{
			Type: scep.PKCSReq, TransactionID: fmt.Sprintf("%d-%d", clients, i), Signer: certs[i%deviceKeys], SignerKey: key, CSR: csr,
		})
		return err
	})
}

// ticksPerSecond is USER_HZ, which Linux fixed for what /proc says.
const ticksPerSecond = 100

// cpuOfAll is the CPU time of the service's processes so far, in seconds.
func cpuOfAll(s *site.Site) (map[string]float64, error) {
	all, err := s.Processes()
	if err != nil {
		return nil, err
	}
	used := make(map[string]float64)
	for name, pid := range all {
		if used[name], err = cpuOf(pid); err != nil {
			return nil, err
		}
	}
	return used, nil
}

// cpuOf is the CPU time of a process so far, in seconds.
func cpuOf(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	user, err1 := strconv.ParseUint(fields[11], 10, 64)
	system, err2 := strconv.ParseUint(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	return float64(user+system) / ticksPerSecond, nil
}
