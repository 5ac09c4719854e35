// Command vectors makes golden messages: it has other implementations enroll at a CA
// of its own, whose keys it knows, and writes what they sent to
// protocol/scep/testdata/vectors, each with what is to be read in it.
//
// # What a caller may rely on
//
// The messages are those that strongSwan's pki, certmonger, OpenSSL's cms command and
// github.com/smallstep/scep make as they are installed here; each file names the
// program and its version. Each file has the key of the certificate to which the
// envelope was made. Nothing is issued.
//
// # What it does not protect against
//
// The messages are other ones each time: read the difference before it is committed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/postern-pki/postern/test/site"
)

func main() {
	out := flag.String("out", "", "`folder` to write to; by default that of the repository")
	flag.Parse()
	if err := run(context.Background(), *out); err != nil {
		fmt.Fprintln(os.Stderr, "vectors:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string) error {
	if out == "" {
		root, err := site.Root()
		if err != nil {
			return err
		}
		out = filepath.Join(root, "protocol", "scep", "testdata", "vectors")
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	c, err := newCA()
	if err != nil {
		return err
	}
	for _, program := range []struct {
		name string
		make func(context.Context, *ca) ([]vector, error)
	}{{"strongSwan", strongSwan}, {"certmonger", certmongers}, {"OpenSSL", openSSL}, {"smallstep", smallstep}} {
		vectors, err := program.make(ctx, c)
		if err != nil {
			return fmt.Errorf("%s: %w", program.name, err)
		}
		for _, v := range vectors {
			if err := c.write(out, v); err != nil {
				return fmt.Errorf("%s: %s: %w", program.name, v.name, err)
			}
			fmt.Println(v.name)
		}
	}
	return nil
}
