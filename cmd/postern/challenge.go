package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/policy"
)

// maxBatchLines and batchSize bound a batch: the service takes 1,000 at a time.
const (
	maxBatchLines = 100_000
	batchSize     = 1000
)

func (a *app) challengeCmd() *cobra.Command {
	c := &cobra.Command{Use: "challenge", Short: "Create one-time challenges"}
	var asked operator.ChallengeRequest
	var san []string
	var ttl time.Duration
	var batch string
	create := &cobra.Command{
		Use: "create", Short: "Create a challenge for one subject, or one for each line of a file", Args: cobra.NoArgs,
		Example: "  postern challenge create --profile wifi --subject 'CN=printer-7.corp.example' --san dns:printer-7.corp.example\n" +
			"  postern challenge create --profile wifi --batch subjects.txt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asked.Profile == "" {
				return misused("--profile NAME", "a challenge needs a profile")
			}
			if (asked.Subject == "") == (batch == "") {
				return misused("--subject 'CN=..' or --batch FILE", "a challenge needs either a subject or a file of them")
			}
			if _, err := policy.ParseSubject(asked.Subject); err != nil && batch == "" {
				return misused("--subject 'CN=host.example,O=Example Corp'", "not an RFC 4514 subject: %w", err)
			}
			if ttl < 0 {
				return misused("--ttl 30m", "a time to live is positive")
			}
			if ttl > 0 {
				asked.TTL = ttl.String()
			}
			names, err := dnsNames(san)
			if err != nil {
				return err
			}
			asked.DNS = names
			if batch == "" {
				return a.createOne(cmd, asked)
			}
			return a.createBatch(cmd, asked, batch)
		},
	}
	f := create.Flags()
	f.StringVar(&asked.Profile, "profile", "", "`profile` that it is for")
	f.StringVar(&asked.Subject, "subject", "", "RFC 4514 `subject` that it binds")
	f.StringArrayVar(&san, "san", nil, "subject alternative `name` that it binds, such as dns:host.example; may be repeated")
	f.DurationVar(&ttl, "ttl", 0, "time to live, such as 30m (default and most: the profile's)")
	f.StringVar(&batch, "batch", "", "`file` with one subject a line, and after a tab its dns: names; - is standard input")
	c.AddCommand(create)
	return c
}

// dnsNames reads names of the form dns:host.
func dnsNames(san []string) ([]string, error) {
	var out []string
	for _, s := range san {
		name, ok := strings.CutPrefix(s, "dns:")
		if !ok || name == "" {
			return nil, misused("--san dns:host.example", "no subject alternative name: %q", s)
		}
		out = append(out, name)
	}
	return out, nil
}

func (a *app) createOne(cmd *cobra.Command, asked operator.ChallengeRequest) error {
	var made []operator.Challenge
	if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/challenges", []operator.ChallengeRequest{asked}, &made); err != nil {
		return err
	}
	if len(made) != 1 {
		return failed("", "the service made %d challenges instead of one", len(made))
	}
	return a.print(made[0], func(w io.Writer) {
		m := made[0]
		_, _ = fmt.Fprintf(w, "challenge\t%s\nid\t%s\nprofile\t%s\nsubject\t%s\nexpires\t%s\n",
			m.Challenge, m.ID, m.Profile, m.Subject, m.Expires.Format(time.RFC3339))
	})
}

// createBatch reads all lines before it creates anything, and prints one line
// for each: the challenge alone, or its JSON.
func (a *app) createBatch(cmd *cobra.Command, like operator.ChallengeRequest, path string) error {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return failed("", "reading the batch: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	asked, at, err := batchOf(in, like)
	if err != nil {
		return err
	}
	for len(asked) > 0 {
		n := min(len(asked), batchSize)
		var made []operator.Challenge
		if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/challenges", asked[:n], &made); err != nil {
			hint := ""
			if h, ok := errors.AsType[*hinted](err); ok {
				hint = h.hint
			}
			return failed(hint, "lines %d to %d, of which none was done: %w", at[0], at[n-1], err)
		}
		for _, m := range made {
			if err := a.batchLine(m); err != nil {
				return err
			}
		}
		asked, at = asked[n:], at[n:]
	}
	return nil
}

// batchOf reads all lines, and at which line each challenge stands.
func batchOf(in io.Reader, like operator.ChallengeRequest) (asked []operator.ChallengeRequest, at []int, err error) {
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		fields := strings.Split(text, "\t")
		if _, err := policy.ParseSubject(fields[0]); err != nil {
			return nil, nil, failed("one subject a line, such as CN=host.example,O=Example Corp", "line %d: not an RFC 4514 subject: %w", n, err)
		}
		one := like
		one.Subject = fields[0]
		names, err := dnsNames(fields[1:])
		if err != nil {
			return nil, nil, failed("after a tab, dns:host.example", "line %d: %w", n, err)
		}
		one.DNS = append(append([]string(nil), like.DNS...), names...)
		asked, at = append(asked, one), append(at, n)
		if len(asked) > maxBatchLines {
			return nil, nil, failed("split the file", "more than %d lines", maxBatchLines)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, nil, failed("", "reading the batch: %w", err)
	}
	if len(asked) == 0 {
		return nil, nil, failed("one subject a line", "the batch is empty")
	}
	return asked, at, nil
}
