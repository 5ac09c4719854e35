// Command postern-ceremony makes an appliance's keys and first certificates on a
// PKCS#11 token, by one plan, and writes a transcript of it.
//
// It exits 0 when what was asked is done, 1 when it failed and 2 when it was
// misused. A PIN comes from the terminal, a file, a descriptor or a credential,
// never from an argument or the environment. It does not protect against a
// machine or a module that lies: whoever runs it has to trust both.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a ceremony ends between two steps; who cannot wait interrupts it again
	status := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
