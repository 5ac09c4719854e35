package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/rpc"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/protocol/status"
	"github.com/postern-pki/postern/test/site"
)

// A clock notes when it was first and last read: a gate reads it when a message has
// arrived, and at last when it waits.
type clock struct {
	mu          sync.Mutex
	first, last time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
	if c.first.IsZero() {
		c.first = c.last
	}
	return c.last
}

// lap returns the time between the two, and begins anew.
func (c *clock) lap() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	took := c.last.Sub(c.first)
	c.first, c.last = time.Time{}, time.Time{}
	return took
}

// authority is what a gate needs, without a link.
type authority struct {
	protocol.Authority
	status.Source
	a *appliance.Authority
}

func (d authority) Operate(ctx context.Context, c rpc.Call) (rpc.Answer, error) {
	return d.a.Operate(ctx, rpc.RoleOperators, c)
}

func (d authority) Chain(context.Context) ([][]byte, error) { return d.a.Chain(), nil }

// before serves the stopped site in this process, and reports how long a message of
// each class takes until the gate waits for the next multiple of 50 ms.
func before(ctx context.Context, s *site.Site, classes []*class, n int) error {
	cfg, err := config.Load(filepath.Join(s.Dir, "postern.yaml"))
	if err != nil {
		return err
	}
	if err := os.Setenv("SOFTHSM2_CONF", cfg.SoftHSM2Conf); err != nil {
		return err
	}
	env := appliance.Env{Version: "timing"}
	keys, err := appliance.OpenKeyholder(ctx, cfg, env)
	if err != nil {
		return err
	}
	defer func() { _ = keys.Close(context.WithoutCancel(ctx)) }()
	a, err := appliance.OpenAuthority(ctx, cfg, env, keys)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(context.WithoutCancel(ctx)) }()
	c := new(clock)
	env.Now = c.now // of the gate alone
	devices, err := appliance.OpenDevices(ctx, cfg, env, authority{a.Verbs().Devices, a.Verbs().Status, a}, keys)
	if err != nil {
		return err
	}
	defer func() { _ = devices.Close(context.WithoutCancel(ctx)) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { _ = devices.Serve(ctx) }()
	h, err := s.HTTP()
	if err != nil {
		return err
	}
	d := &site.Device{Client: &client.Client{URL: fmt.Sprintf("https://%s/scep/interop", devices.Addr()), HTTP: h}}
	for _, one := range classes {
		one.took = nil
	}
	for range n {
		for _, i := range rand.Perm(len(classes)) {
			c.lap()
			if err := classes[i].send(ctx, d); err != nil {
				return err
			}
			classes[i].took[len(classes[i].took)-1] = c.lap().Seconds()
		}
	}
	fmt.Printf("Time before the wait, %d messages of each class, one at a time, all roles in one process. Here classes may differ: the wait hides it.\n", n)
	report(os.Stdout, classes)
	return nil
}
