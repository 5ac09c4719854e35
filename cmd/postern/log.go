package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/appliance"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/cmd/postern/cli"
)

// batchLine prints one challenge of a batch.
func (a *app) batchLine(m operator.Challenge) error {
	if a.json() {
		return json.NewEncoder(a.out).Encode(m)
	}
	_, err := fmt.Fprintln(a.out, m.Challenge)
	return err
}

func (a *app) auditCmd() *cobra.Command {
	c := &cobra.Command{Use: "audit", Short: "Verify and read the log"}
	c.AddCommand(a.auditVerifyCmd(), a.auditShowCmd(), a.auditExportCmd())
	return c
}

func (a *app) auditVerifyCmd() *cobra.Command {
	var dir, trust string
	verify := &cobra.Command{
		Use: "verify", Short: "Verify the whole log on disk, with the service up or down", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var cfg *config.Config
			if dir == "" || trust == "" {
				var err error
				if cfg, err = config.Load(a.config); err != nil {
					return failed("or name both --dir and --trust", "%w", err)
				}
			}
			if dir == "" {
				dir = filepath.Join(cfg.State, "audit")
			}
			if _, err := os.Stat(filepath.Join(dir, "segments")); err != nil {
				return failed("--dir names a folder that has segments/; where a log was and is none now, keep the disk as it is", "no log in %s: %w", dir, err)
			}
			verifier, err := appliance.AuditVerifier(cfg, trust, dir)
			if err != nil {
				return failed("--trust audit.pem", "%w", err)
			}
			report, err := audit.Verify(cmd.Context(), dir, audit.VerifyOptions{Verifier: verifier})
			if damage, ok := errors.AsType[*audit.Damage](err); ok {
				err := failed("the log was changed or damaged: keep the disk as it is, and ask the auditor", "%w", damage)
				if a.json() {
					err = errors.Join(err, a.print(map[string]any{"damage": damaged{damage.Segment, damage.Line, damage.Offset, damage.Seq, damage.Why}}, nil))
				}
				return err
			}
			if err != nil {
				return failed("", "verifying %s: %w", dir, err)
			}
			return a.print(report, func(w io.Writer) { printReport(w, dir, report) })
		},
	}
	verify.Flags().StringVar(&dir, "dir", "", "log `folder` (default: the configuration's)")
	verify.Flags().StringVar(&trust, "trust", "", "certificate `file` of the audit key (default: the configuration's)")
	return verify
}

// damaged is the JSON of a log that is not what it should be.
type damaged struct {
	Segment string `json:"segment"`
	Line    int    `json:"line"`   // within the segment, from 1
	Offset  int64  `json:"offset"` // of the line, in octets
	Record  uint64 `json:"record"`
	Why     string `json:"why"`
}

func (a *app) auditShowCmd() *cobra.Command {
	var req, serial, proof string
	show := &cobra.Command{
		Use: "show", Short: "Show the records of one request or serial number", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (req == "") == (serial == "") {
				return misused("--req ID or --serial S", "name one request, or one serial number")
			}
			q := url.Values{}
			if req != "" {
				q.Set("req", req)
			} else {
				number, err := serialOf(serial)
				if err != nil {
					return err
				}
				q.Set("serial", number)
			}
			var r operator.Records
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/records?"+q.Encode(), nil, &r); err != nil {
				return err
			}
			if proof != "" {
				if err := a.prove(cmd.Context(), proof, r.Records); err != nil {
					return err
				}
			}
			return a.print(r, func(w io.Writer) {
				for _, line := range r.Records {
					printRecord(w, line)
				}
			})
		},
	}
	show.Flags().StringVar(&req, "req", "", "request `id`, as the device was told")
	show.Flags().StringVar(&serial, "serial", "", "serial `number`, hex")
	show.Flags().StringVar(&proof, "proof", "", "write the records with proofs that a signed checkpoint covers them to a new `file`")
	return show
}

func printReport(w io.Writer, dir string, r audit.Report) {
	_, _ = fmt.Fprintf(w, "the log in %s is whole\n", dir)
	p := func(key string, value any) { _, _ = fmt.Fprintf(w, "%s\t%v\n", key, value) }
	p("origin", r.Origin)
	p("records", fmt.Sprintf("%d in %d segment(s), %s to %s", r.Records, r.Segments, r.First.Format(time.RFC3339), r.Last.Format(time.RFC3339)))
	p("root", r.Root)
	p("checkpoints", fmt.Sprintf("%d, the newest covers %d records", r.Checkpoints, r.Signed))
	if r.Unfinished > 0 {
		p("unfinished", fmt.Sprintf("%d octets after the last whole record", r.Unfinished))
	}
	for _, event := range slices.Sorted(maps.Keys(r.Events)) {
		p(event, r.Events[event])
	}
}

// shown is [cli.Shown].
func shown(s string) string { return cli.Shown(s) }

func printRecord(w io.Writer, raw string) {
	l, err := audit.ParseLine([]byte(raw))
	if err != nil {
		_, _ = fmt.Fprintf(w, "a line that is no record: %v\n", err)
		return
	}
	r := l.Record
	_, _ = fmt.Fprintf(w, "record %d\t%s\t%s %s\t%s %s\n", r.Seq, r.Time.Format("2006-01-02T15:04:05.000000Z"), r.Event, r.Outcome, r.Actor.Kind, shown(r.Actor.Source))
	for _, key := range []string{"profile", "kind", "by", "say", "why", "subject", "serial", "challenge_why", "what", "transaction"} {
		if v := r.Object.String(key); v != "" {
			_, _ = fmt.Fprintf(w, "\t%s\t%s\n", key, shown(v))
		}
	}
	if c := r.Object.Object("client"); c != nil {
		_, _ = fmt.Fprintf(w, "\tclient\t%s %s\n", shown(cmp.Or(c.String("agent"), "-")), shown(strings.Join(c.Strings("traits"), " ")))
	}
	for _, reason := range r.Object.Objects("reasons") {
		_, _ = fmt.Fprintf(w, "\treason\t%s: saw %+q: %s\n", shown(reason.String("rule")), reason.String("saw"), shown(reason.String("say")))
	}
}

func (a *app) reportCmd() *cobra.Command {
	c := &cobra.Command{Use: "report", Short: "Report on what the log holds"}
	var since, profile string
	clients := &cobra.Command{
		Use: "clients", Short: "Name the clients that still use what is old, such as SHA-1 or GET", Args: cobra.NoArgs,
		Example: "  postern report clients --since 7d --profile wifi",
		RunE: func(cmd *cobra.Command, _ []string) error {
			span, err := spanOf(since)
			if err != nil {
				return err
			}
			q := url.Values{"since": {time.Now().Add(-span).UTC().Format(time.RFC3339)}}
			if profile != "" {
				q.Set("profile", profile)
			}
			var r operator.ClientReport
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/reports/clients?"+q.Encode(), nil, &r); err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { printClients(w, r) })
		},
	}
	clients.Flags().StringVar(&since, "since", "30d", "`time` to look back, such as 24h or 30d")
	clients.Flags().StringVar(&profile, "profile", "", "`profile` to report on (default: all)")
	c.AddCommand(clients)
	return c
}

// spanOf reads a time to look back: Go's durations, with d for days.
func spanOf(text string) (time.Duration, error) {
	span, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 16)
		span = time.Duration(n) * 24 * time.Hour
	}
	if err != nil || span <= 0 {
		return 0, misused("--since 24h or --since 30d", "%q is no time to look back", text)
	}
	return span, nil
}

func printClients(w io.Writer, r operator.ClientReport) {
	_, _ = fmt.Fprintf(w, "%d of %d requests since %s show something old\n", r.Old, r.Requests, r.Since.Format(time.RFC3339))
	if r.Old == 0 {
		return
	}
	_, _ = fmt.Fprintf(w, "\nTRAIT\tREQUESTS\tCLIENTS\tMEANS\n")
	for _, t := range r.Traits {
		_, _ = fmt.Fprintf(w, "%s\t%d\t%d\t%s\n", t.Trait, t.Requests, t.Clients, t.Says)
	}
	_, _ = fmt.Fprintf(w, "\nPROFILE\tCLIENT\tLAST\tREQUESTS\tREFUSED\tSOURCE\tAGENT\tTRAITS\n")
	for _, c := range r.Clients {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", shown(c.Profile), shown(cmp.Or(c.Subject, "-")), c.Last.Format(time.RFC3339),
			c.Requests, c.Refused, shown(c.Source), shown(cmp.Or(c.Agent, "-")), strings.Join(c.Traits, " "))
	}
	if r.More > 0 {
		_, _ = fmt.Fprintf(w, "and %d more\n", r.More)
	}
}

func (a *app) rebuildCmd() *cobra.Command {
	var apply bool
	c := &cobra.Command{
		Use: "rebuild", Short: "Make the state index anew from the log, with the service down", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(a.config)
			if err != nil {
				return failed("", "%w", err)
			}
			if !apply {
				return a.print(map[string]any{"would_replace": filepath.Join(cfg.State, "index.db")}, func(w io.Writer) {
					_, _ = fmt.Fprintf(w, "would make %s anew from the log; nothing was changed: say --apply\n", filepath.Join(cfg.State, "index.db"))
				})
			}
			r, err := appliance.Rebuild(cmd.Context(), cfg)
			if err != nil {
				hint := "the old index stays where it is; postern audit verify says whether the log is whole"
				if errors.Is(err, audit.ErrLocked) {
					hint = "stop the service first; the old index stays where it is"
				}
				return failed(hint, "rebuilding: %w", err)
			}
			return a.print(r, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "the index has seen %d records, all of the log\n", r.Next)
				switch {
				case r.Same:
					_, _ = fmt.Fprintln(w, "it is the same as the one before")
				case r.Kept != "":
					_, _ = fmt.Fprintf(w, "it differs from the one before, which is kept as %s\n", r.Kept)
				}
			})
		},
	}
	c.Flags().BoolVar(&apply, "apply", false, "do it")
	return c
}
