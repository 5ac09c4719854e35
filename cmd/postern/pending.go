package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
)

func (a *app) pendingCmd() *cobra.Command {
	c := &cobra.Command{Use: "pending", Short: "List, show, approve and deny requests that wait for an operator"}
	c.AddCommand(a.pendingListCmd(), a.pendingShowCmd(),
		a.rulingCmd("approve", "Approve a request: its certificate is issued now", acts.ApprovePending, "/api/v1/approvals/"),
		a.rulingCmd("deny", "Deny a request, for good", acts.DenyPending, "/api/v1/denials/"))
	return c
}

func pendingStates() []string { return []string{"waiting", "approved", "issued", "denied", "all"} }

func (a *app) pendingListCmd() *cobra.Command {
	var profile, state string
	var limit int
	list := &cobra.Command{
		Use: "list", Short: "List requests that wait, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return misused("--limit 100", "a list has 1 to 1000 requests")
			}
			if !slices.Contains(pendingStates(), state) {
				return misused("--state "+strings.Join(pendingStates(), ", "), "no state %q", state)
			}
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			if profile != "" {
				q.Set("profile", profile)
			}
			if state != "all" {
				q.Set("state", state)
			}
			var l operator.PendingList
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/pending?"+q.Encode(), nil, &l); err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) {
				_, _ = fmt.Fprintln(w, "ID\tSTATE\tPROFILE\tSINCE\tUNTIL\tFROM\tSUBJECT")
				for _, p := range l.Pending {
					_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.ID, p.State, p.Profile, p.Created.Format(time.RFC3339), p.Expires.Format(time.RFC3339),
						shown(p.Source), shown(p.Subject))
				}
			})
		},
	}
	f := list.Flags()
	f.StringVar(&profile, "profile", "", "of this `profile`")
	f.StringVar(&state, "state", "waiting", "in this `state`: "+strings.Join(pendingStates(), ", "))
	f.IntVar(&limit, "limit", 100, "at most so many, 1 to 1000")
	return list
}

func (a *app) pendingShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Print all that a request says and that a decision is made from", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.pending(cmd, args[0])
			if err != nil {
				return err
			}
			return a.print(p, func(w io.Writer) { printPending(w, p) })
		},
	}
}

// pending asks for one request.
func (a *app) pending(cmd *cobra.Command, id string) (p operator.PendingDetail, err error) {
	if id == "" || strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") != "" {
		return p, misused("postern pending list --state all", "no request has an id like %q", id)
	}
	return p, a.call(cmd.Context(), http.MethodGet, "/api/v1/pending/"+id, nil, &p)
}

func printPending(w io.Writer, d operator.PendingDetail) {
	p := func(key, format string, args ...any) { _, _ = fmt.Fprintf(w, key+"\t"+format+"\n", args...) }
	p("id", "%s", d.ID)
	p("state", "%s", d.State)
	p("profile", "%s", d.Profile)
	p("asks for", "%s", d.Kind)
	p("subject", "%s", shown(d.Subject))
	for _, n := range d.DNS {
		p("dns", "%s", shown(n))
	}
	p("key", "%s, SHA-256 %s", d.Key, d.KeySHA256)
	p("from", "%s", shown(d.Source))
	p("signed by", "%s", d.Signer)
	p("vouched by", "%s", shown(d.VouchedBy))
	p("transaction", "%s", shown(d.Transaction))
	p("since", "%s", d.Created.Format(time.RFC3339))
	p("until", "%s", d.Expires.Format(time.RFC3339))
	p("policy", "%s", d.Policy)
	p("digest", "%s", d.Digest)
	if d.Serial != "" {
		p("certificate", "%s", d.Serial)
	}
	if d.Why != "" {
		p("denied", "%s", shown(d.Why))
	}
	if facts, err := json.Marshal(d.Facts); err == nil {
		p("facts", "%s", shown(string(facts)))
	}
}

// rulingCmd makes the command of a decision.
func (a *app) rulingCmd(verb, short, act, path string) *cobra.Command {
	var w written
	var reason string
	c := &cobra.Command{
		Use: verb + " ID --reason TEXT", Short: short, Args: cobra.ExactArgs(1),
		Example: "  postern pending " + verb + " mfrggzdfmztwq2lknnwg23tpoa --reason 'ticket 4711'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return misused("--reason TEXT", "a decision needs a reason: it stands in the log")
			}
			p, err := a.pending(cmd, args[0])
			if err != nil {
				return err
			}
			if w.file != "" {
				return a.writeAct(cmd, w, act, acts.Parameters{Pending: p.ID, Digest: p.Digest, Reason: reason})
			}
			var done operator.Ruled
			if err := a.call(cmd.Context(), http.MethodPost, path+p.ID, operator.Ruling{Reason: reason, Digest: p.Digest}, &done); err != nil {
				return err
			}
			return a.printRuled(done)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why: one line for the log, which the device is not told")
	w.flags(c)
	return c
}

func (a *app) printRuled(done operator.Ruled) error {
	return a.print(done, func(w io.Writer) {
		if done.Serial != "" {
			_, _ = fmt.Fprintf(w, "request %s is approved: certificate %s\n", done.ID, done.Serial)
			return
		}
		_, _ = fmt.Fprintf(w, "request %s is %s\n", done.ID, done.State)
	})
}
