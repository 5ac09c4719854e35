package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/operator"
)

// maxAnswer bounds what the service may answer.
const maxAnswer = 16 << 20

// call asks the service over its local socket and decodes the answer into out.
func (a *app) call(ctx context.Context, method, path string, body, out any) error {
	socket := a.socket
	if socket == "" {
		var err error
		if socket, err = config.Socket(a.config); err != nil {
			return failed("--config FILE or --socket PATH", "finding the service's socket: %w", err)
		}
	}
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://local"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return failed(dialHint(err), "the service at %s does not answer: %w", socket, errors.Unwrap(err))
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxAnswer))
	if err != nil {
		return failed("", "reading the service's answer: %w", err)
	}
	if resp.StatusCode >= 400 {
		var p operator.Problem
		if json.Unmarshal(answer, &p) != nil || p.Error == "" {
			p.Error = resp.Status
		}
		return failed(p.Hint, "%s", p.Error)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return failed("is it a Postern of the same version?", "the service's answer is not what was expected: %w", err)
	}
	return nil
}

func dialHint(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return "is posternd running? its journal says why not"
	case errors.Is(err, fs.ErrPermission):
		return "the socket's group may connect, and operators.local says who of them may do what"
	}
	return ""
}

// print writes v as JSON, or lets text write it.
func (a *app) print(v any, text func(w io.Writer)) error {
	return a.env().Print(v, text)
}

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Say how the appliance is: exits 0 good, 1 unreachable, 2 degraded", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s operator.Status
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/status", nil, &s); err != nil {
				if a.json() {
					return errors.Join(err, a.print(unreachable{"unreachable", []string{err.Error()}}, nil))
				}
				return err
			}
			err := a.print(s, func(w io.Writer) { printStatus(w, s) })
			if err == nil && s.State != operator.Good {
				return quiet(2)
			}
			return err
		},
	}
}

// unreachable is the JSON of `status` where nobody answers.
type unreachable struct {
	State   string   `json:"state"`
	Reasons []string `json:"reasons"`
}

func printStatus(w io.Writer, s operator.Status) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("state\t%s\n", s.State)
	for _, r := range s.Reasons {
		p("\t%s\n", r)
	}
	for _, w := range s.Weaker {
		p("weaker\t%s\n", w)
	}
	p("version\t%s\nstarted\t%s\npolicy\t%s\n", s.Version, s.Started.Format(time.RFC3339), s.Policy)
	p("log\t%s, %d records, root %s\n", s.Log.Origin, s.Log.Size, s.Log.Root)
	p("token\t%s, serial %s, %d operations, %d failed\n", s.Token.Label, s.Token.Serial, s.Token.Operations, s.Token.Failures)
	p("operators\t%d with keys, %d local\n", s.Operators.People, s.Operators.Local)
	if s.Operators.LocalDefault {
		p("\tthe configuration has no operators.local: root and the service's own user are administrators\n")
	}
	if len(s.Operators.TwoPerson) > 0 {
		p("\ttwo people for %s\n", strings.Join(s.Operators.TwoPerson, ", "))
	}
	if s.Waiting > 0 {
		p("waiting\t%d requests for approval: postern pending list\n", s.Waiting)
	}
	for _, pr := range s.Profiles {
		p("profile\t%s\t%s\n", pr.Name, pr.URL)
	}
	for _, l := range s.CRLs {
		p("crl\t%s\tnumber %d\tuntil %s\n", l.Issuer, l.Number, l.NextUpdate.Format(time.RFC3339))
	}
	for _, e := range s.Expiries {
		p("certificate\t%s\tuntil %s\t%s\n", e.Name, e.NotAfter.Format(time.RFC3339), e.SHA256)
	}
}

func (a *app) configCmd() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check the configuration"}
	c.AddCommand(&cobra.Command{
		Use: "check", Short: "Check the configuration and its profiles, and name every fault", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := config.Load(a.config)
			if err != nil {
				return failed("each line names file, line and column", "%w", err)
			}
			answer := map[string]any{"config": cfg.Path, "digest": cfg.Digest, "policy": cfg.Policies.Digest(), "profiles": cfg.Policies.Names()}
			return a.print(answer, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%s is good: profiles %s\n", cfg.Path, strings.Join(cfg.Policies.Names(), ", "))
			})
		},
	})
	return c
}

func (a *app) certCmd() *cobra.Command {
	c := &cobra.Command{Use: "cert", Short: "List, show and revoke certificates"}
	var profile, subject, state string
	var limit int
	var before uint64
	list := &cobra.Command{
		Use: "list", Short: "List certificates, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return misused("--limit 100", "a list has 1 to 1000 certificates")
			}
			if state != "" && !slices.Contains(states(), state) {
				return misused("--state "+strings.Join(states(), ", "), "no state %q", state)
			}
			q := url.Values{}
			for key, v := range map[string]string{"profile": profile, "subject": subject, "state": state} {
				if v != "" {
					q.Set(key, v)
				}
			}
			q.Set("limit", strconv.Itoa(limit))
			if before > 0 {
				q.Set("before", strconv.FormatUint(before, 10))
			}
			var l operator.Certificates
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/certificates?"+q.Encode(), nil, &l); err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) {
				_, _ = fmt.Fprintln(w, "SERIAL\tSTATE\tPROFILE\tRENEWAL\tUNTIL\tSUBJECT")
				for _, c := range l.Certificates {
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", c.Serial, c.State, c.Profile, c.Renewal, c.NotAfter.Format(time.DateOnly), shown(c.Subject))
				}
				if l.Before > 0 {
					_, _ = fmt.Fprintf(w, "more: --before %d\n", l.Before)
				}
			})
		},
	}
	f := list.Flags()
	f.StringVar(&profile, "profile", "", "of this `profile`")
	f.StringVar(&subject, "subject", "", "with this `text` in the subject")
	f.StringVar(&state, "state", "", "in this `state`: "+strings.Join(states(), ", "))
	f.IntVar(&limit, "limit", 100, "at most so many, 1 to 1000")
	f.Uint64Var(&before, "before", 0, "continue a list from its `number`")
	show := &cobra.Command{
		Use: "show SERIAL", Short: "Show one certificate", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			serial, err := serialOf(args[0])
			if err != nil {
				return err
			}
			var c operator.Certificate
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/certificates/"+serial, nil, &c); err != nil {
				return err
			}
			return a.print(c, func(w io.Writer) { printCertificate(w, c) })
		},
	}
	c.AddCommand(list, show, a.certRevokeCmd())
	return c
}

// states are those that a serial number can be in.
func states() []string { return []string{"intended", "issued", "failed", "unknown"} }

// serialOf reads a serial number as any tool prints it: with colons, in capitals.
func serialOf(text string) (string, error) {
	s := strings.ToLower(strings.ReplaceAll(text, ":", ""))
	if _, err := hex.DecodeString(s); err != nil || s == "" {
		return "", misused("openssl x509 -in FILE -noout -serial", "no serial number in hex: %q", text)
	}
	return s, nil
}

func printCertificate(w io.Writer, c operator.Certificate) {
	p := func(key string, value any) { _, _ = fmt.Fprintf(w, "%s\t%v\n", key, value) }
	p("serial", c.Serial)
	p("state", c.State)
	p("profile", c.Profile)
	p("issuer", c.Issuer)
	p("subject", shown(c.Subject))
	p("valid", c.NotBefore.Format(time.RFC3339)+" to "+c.NotAfter.Format(time.RFC3339))
	p("request", c.Request)
	p("lineage", c.Lineage)
	p("renewal", c.Renewal)
	if c.Predecessor != "" {
		p("predecessor", c.Predecessor)
	}
	if c.RevokedAt != nil {
		p("revoked", c.RevokedAt.Format(time.RFC3339)+" for "+c.Reason)
	}
	p("records", fmt.Sprintf("intent %d, result %d", c.IntentSeq, c.ResultSeq))
	_, _ = io.WriteString(w, c.PEM)
}
