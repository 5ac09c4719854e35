package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/policy"
)

// maxBatchLines and batchSize bound a batch: the service takes 1,000 at a time.
const (
	maxBatchLines = 100_000
	batchSize     = 1000
)

func (a *app) challengeCmd() *cobra.Command {
	c := &cobra.Command{Use: "challenge", Short: "Create, list and revoke one-time challenges"}
	c.AddCommand(a.challengeCreateCmd(), a.challengeListCmd(), a.challengeRevokeCmd())
	return c
}

func (a *app) challengeCreateCmd() *cobra.Command {
	var w written
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
			names, err := cli.DNSNames(san)
			if err != nil {
				return err
			}
			asked.DNS = names
			if batch == "" && w.file == "" {
				return a.createOne(cmd, asked)
			}
			list, at := []operator.ChallengeRequest{asked}, []int{1}
			if batch != "" {
				if list, at, err = a.readBatch(asked, batch); err != nil {
					return err
				}
			}
			if w.file != "" {
				return a.writeAct(cmd, w, createAct(list), acts.Parameters{Challenges: list})
			}
			return a.createBatch(cmd, list, at)
		},
	}
	f := create.Flags()
	f.StringVar(&asked.Profile, "profile", "", "`profile` that it is for")
	f.StringVar(&asked.Subject, "subject", "", "RFC 4514 `subject` that it binds")
	f.StringArrayVar(&san, "san", nil, "subject alternative `name` that it binds, such as dns:host.example; may be repeated")
	f.DurationVar(&ttl, "ttl", 0, "time to live, such as 30m (default and most: the profile's)")
	f.StringVar(&batch, "batch", "", "`file` with one subject a line, and after a tab its dns: names; - is standard input")
	w.flags(create)
	return create
}

// createAct is the act that creates so many challenges.
func createAct(list []operator.ChallengeRequest) string {
	if len(list) == 1 {
		return acts.CreateChallenge
	}
	return acts.CreateChallenges
}

func (a *app) createOne(cmd *cobra.Command, asked operator.ChallengeRequest) error {
	var made []operator.Challenge
	if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/challenges", []operator.ChallengeRequest{asked}, &made); err != nil {
		return err
	}
	if len(made) != 1 {
		return failed("", "the service made %d challenges instead of one", len(made))
	}
	return a.printChallenge(made[0])
}

func (a *app) printChallenge(m operator.Challenge) error {
	return a.print(m, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "challenge\t%s\nid\t%s\nprofile\t%s\nsubject\t%s\nexpires\t%s\n",
			m.Challenge, m.ID, m.Profile, m.Subject, m.Expires.Format(time.RFC3339))
	})
}

// readBatch reads all lines of a file: nothing is created of a file with a fault.
func (a *app) readBatch(like operator.ChallengeRequest, path string) ([]operator.ChallengeRequest, []int, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, nil, failed("", "reading the batch: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	return batchOf(in, like)
}

// createBatch prints one line for each challenge: the challenge alone, or its JSON.
func (a *app) createBatch(cmd *cobra.Command, asked []operator.ChallengeRequest, at []int) error {
	for len(asked) > 0 {
		n := min(len(asked), batchSize)
		var made []operator.Challenge
		if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/challenges", asked[:n], &made); err != nil {
			hint := ""
			if h, ok := errors.AsType[*hinted](err); ok {
				hint = h.Hint
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
		names, err := cli.DNSNames(fields[1:])
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

func (a *app) challengeListCmd() *cobra.Command {
	var profile, state string
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List challenges without their secrets, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return misused("--limit 100", "a list has 1 to 1000 challenges")
			}
			if state != "" && !slices.Contains(challengeStates(), state) {
				return misused("--state "+strings.Join(challengeStates(), ", "), "no state %q", state)
			}
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			for key, v := range map[string]string{"profile": profile, "state": state} {
				if v != "" {
					q.Set(key, v)
				}
			}
			var l operator.Challenges
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/challenges?"+q.Encode(), nil, &l); err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) {
				_, _ = fmt.Fprintln(w, "ID\tSTATE\tPROFILE\tREFUSALS\tEXPIRES\tSUBJECT")
				for _, c := range l.Challenges {
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", c.ID, c.State, c.Profile, c.Refusals, c.Expires.Format(time.RFC3339), shown(c.Subject))
				}
			})
		},
	}
	f := list.Flags()
	f.StringVar(&profile, "profile", "", "of this `profile`")
	f.StringVar(&state, "state", "", "in this `state`: "+strings.Join(challengeStates(), ", "))
	f.IntVar(&limit, "limit", 100, "at most so many, 1 to 1000")
	return list
}

func challengeStates() []string { return []string{"open", "spent", "revoked"} }

func (a *app) challengeRevokeCmd() *cobra.Command {
	var apply bool
	var w written
	revoke := &cobra.Command{
		Use: "revoke ID", Short: "Revoke an open challenge", Args: cobra.ExactArgs(1),
		Example: "  postern challenge revoke mfrggzdfmztwq2lknnwg23tpoa --apply",
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			if id == "" || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") != "" {
				return misused("postern challenge list", "no challenge has an id like %q", id)
			}
			if w.file != "" {
				return a.writeAct(cmd, w, acts.RevokeChallenge, acts.Parameters{Challenge: id})
			}
			if !apply {
				return a.print(map[string]string{"would_revoke": id}, func(w io.Writer) {
					_, _ = fmt.Fprintf(w, "would revoke challenge %s; nothing was changed: say --apply\n", id)
				})
			}
			var done operator.Revoked
			if err := a.call(cmd.Context(), http.MethodDelete, "/api/v1/challenges/"+id, nil, &done); err != nil {
				return err
			}
			return a.printRevoked(done)
		},
	}
	revoke.Flags().BoolVar(&apply, "apply", false, "do it")
	w.flags(revoke)
	return revoke
}

func (a *app) printRevoked(done operator.Revoked) error {
	return a.print(done, func(w io.Writer) { _, _ = fmt.Fprintf(w, "challenge %s is revoked\n", done.ID) })
}
