package main

import (
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

func (a *app) caCmd() *cobra.Command {
	c := &cobra.Command{Use: "ca", Short: "List the CA's generations, and roll over to the next one"}
	list := &cobra.Command{
		Use: "list", Short: "List every generation of every issuer", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l operator.CAs
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/cas", nil, &l); err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) { printCAs(w, l) })
		},
	}
	rollover := &cobra.Command{Use: "rollover", Short: "Say who has moved to the next CA, switch to it, and back"}
	rollover.AddCommand(a.rolloverStatusCmd(), a.rolloverSwitchCmd(), a.rolloverBackCmd())
	group(rollover)
	c.AddCommand(list, a.fingerprintsCmd(), rollover)
	return c
}

func (a *app) fingerprintsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "fingerprints", Short: "Print the fingerprints of what devices are given", Args: cobra.NoArgs,
		Long: "Print the fingerprints of the certificates that devices are given, for a check by other means: read the SHA-256 to whoever\n" +
			"sets a device up, or compare it with what the device shows. The SHA-1 is what some devices and MDMs ask for: it finds a\n" +
			"certificate, and proves none.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l operator.CAs
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/cas", nil, &l); err != nil {
				return err
			}
			return a.print(l, func(w io.Writer) { printFingerprints(w, l) })
		},
	}
}

func printFingerprints(w io.Writer, l operator.CAs) {
	for _, c := range l.CAs {
		_, _ = fmt.Fprintf(w, "issuer %s, generation %s (%s)\n", c.Issuer, c.Generation, c.State)
		for _, f := range c.Fingerprints {
			_, _ = fmt.Fprintf(w, "  %s: %s\n    SHA-256 %s\n    SHA-1   %s\n", f.Role, shown(f.Subject), f.SHA256, f.SHA1)
		}
	}
}

func printCAs(w io.Writer, l operator.CAs) {
	_, _ = fmt.Fprintln(w, "ISSUER\tGENERATION\tSTATE\tLIVE\tUNTIL\tSUBJECT\tSHA-256")
	for _, c := range l.CAs {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", c.Issuer, c.Generation, c.State, c.Live, c.Until.Format(time.DateOnly), shown(c.Subject), c.SHA256)
	}
}

func (a *app) rolloverStatusCmd() *cobra.Command {
	var issuer string
	var limit int
	var before uint64
	status := &cobra.Command{
		Use: "status", Short: "Say which certificates and clients have moved to the next CA", Args: cobra.NoArgs,
		Long: "Say which certificates and clients have moved to the next CA, or, after a switch, to the current one.\n\n" +
			"A certificate has moved when it, or its renewal, was issued by that CA: such a request was encrypted to the CA's RA and\n" +
			"signed by a known device. Fetching the next CA's certificates proves less: GetNextCACert has no client identity, so that\n" +
			"what is known of who asked is the address and the profile. A certificate is shown as fetched where somebody at the address\n" +
			"that asked for it was given the next CA's certificates: behind one address there may be many devices, and a device may\n" +
			"have another address today.",
		Example: "  postern ca rollover status --issuer devices --limit 1000",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 1000 {
				return misused("--limit 100", "a list has 1 to 1000 certificates")
			}
			_, name, err := a.issuerOf(cmd, issuer)
			if err != nil {
				return err
			}
			q := url.Values{"issuer": {name}, "limit": {strconv.Itoa(limit)}}
			if before > 0 {
				q.Set("before", strconv.FormatUint(before, 10))
			}
			var r operator.Rollover
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/rollover?"+q.Encode(), nil, &r); err != nil {
				return err
			}
			return a.print(r, func(w io.Writer) { printRollover(w, r) })
		},
	}
	issuerFlag(status, &issuer)
	status.Flags().IntVar(&limit, "limit", 100, "at most so many certificates and addresses, 1 to 1000")
	status.Flags().Uint64Var(&before, "before", 0, "continue the list of certificates from its `number`")
	return status
}

func issuerFlag(c *cobra.Command, to *string) {
	c.Flags().StringVar(to, "issuer", "", "of this `issuer` (default: the only one)")
}

func printRollover(w io.Writer, r operator.Rollover) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("issuer\t%s\ncurrent\t%s\n", r.Issuer, r.Current)
	switch {
	case r.To == "":
		p("next\tnone is configured, and there is no other generation\n")
		return
	case r.Staged:
		p("next\t%s, which devices are told of\n", r.To)
	default:
		p("next\tnone; other generations are still answered\n")
	}
	p("moved\t%d live certificates are of %s\nwaiting\t%d are of another generation\n", r.Moved, r.To, r.Waiting)
	for _, pr := range r.Profiles {
		p("profile\t%s: %d moved, %d wait, %d addresses have fetched %s\n", pr.Profile, pr.Moved, pr.Waiting, pr.Addresses, r.To)
		for _, f := range pr.Fetches {
			p("\t%s\t%d times, last %s\n", shown(f.Address), f.Count, f.Last.Format(time.RFC3339))
		}
	}
	if len(r.Certificates) == 0 {
		return
	}
	p("\nSERIAL\tPROFILE\tUNTIL\tADDRESS\tFETCHED\tSUBJECT\n")
	for _, c := range r.Certificates {
		fetched := "no"
		if c.Fetched != nil {
			fetched = c.Fetched.Format(time.DateOnly)
		}
		p("%s\t%s\t%s\t%s\t%s\t%s\n", c.Serial, c.Profile, c.NotAfter.Format(time.DateOnly), shown(c.Address), fetched, shown(c.Subject))
	}
	if r.Before > 0 {
		p("more: --before %d\n", r.Before)
	}
}

// issuerOf returns the generations of an issuer: of the one that is named, or of
// the only one.
func (a *app) issuerOf(cmd *cobra.Command, name string) ([]operator.CA, string, error) {
	var l operator.CAs
	if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/cas", nil, &l); err != nil {
		return nil, "", err
	}
	var known []string
	for _, c := range l.CAs {
		if !slices.Contains(known, c.Issuer) {
			known = append(known, c.Issuer)
		}
	}
	if name == "" && len(known) == 1 {
		name = known[0]
	}
	of := slices.DeleteFunc(l.CAs, func(c operator.CA) bool { return c.Issuer != name })
	switch {
	case name == "":
		return nil, "", misused("--issuer NAME", "there are several issuers: %s", strings.Join(known, ", "))
	case len(of) == 0:
		return nil, "", failed("--issuer "+strings.Join(known, ", "), "no issuer has the name %q", name)
	}
	return of, name, nil
}

func (a *app) rolloverSwitchCmd() *cobra.Command {
	var s switching
	c := &cobra.Command{
		Use: "switch", Short: "Make a generation the current one: devices are given its CA from then on", Args: cobra.NoArgs,
		Long: "Make a generation the current one: GetCACert gives its certificates from then on. Requests to every other generation\n" +
			"are still answered by that one. Gates know of it within a second. The listeners' own certificate, where it is of\n" +
			"this issuer, is issued by the new CA at its next renewal.",
		Example: "  postern ca rollover switch --to 2027 --apply",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.to == "" {
				return misused("--to NAME; postern ca list has the names", "a switch needs a generation")
			}
			return a.change(cmd, s)
		},
	}
	c.Flags().StringVar(&s.to, "to", "", "the `generation`")
	s.flags(c)
	return c
}

func (a *app) rolloverBackCmd() *cobra.Command {
	var s switching
	c := &cobra.Command{
		Use: "back", Short: "Make the generation the current one that was so before the last switch", Args: cobra.NoArgs,
		Example: "  postern ca rollover back --apply",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.change(cmd, s) },
	}
	s.flags(c)
	return c
}

// switching is how a switch is asked for.
type switching struct {
	issuer, to string // to: "" for back
	apply      bool
	w          written
}

func (s *switching) flags(c *cobra.Command) {
	issuerFlag(c, &s.issuer)
	c.Flags().BoolVar(&s.apply, "apply", false, "do it")
	s.w.flags(c)
}

// change switches, or says what a switch would do.
func (a *app) change(cmd *cobra.Command, s switching) error {
	cas, issuer, err := a.issuerOf(cmd, s.issuer)
	if err != nil {
		return err
	}
	current := cas[slices.IndexFunc(cas, func(c operator.CA) bool { return c.State == operator.CACurrent })]
	back := s.to == ""
	if back {
		s.to = current.Before
	}
	at := slices.IndexFunc(cas, func(c operator.CA) bool { return c.Generation == s.to })
	switch {
	case back && s.to == "":
		return failed("postern ca rollover switch --to NAME", "there was no switch to go back from")
	case at < 0:
		return failed("postern ca list", "issuer %s has no generation %q", issuer, s.to)
	case s.to == current.Generation:
		return failed("postern ca list", "%s is the current generation of issuer %s already", s.to, issuer)
	}
	asked := operator.CASwitch{Issuer: issuer, From: current.Generation, To: s.to}
	if s.w.file != "" {
		return a.writeAct(cmd, s.w, acts.SwitchCA, acts.Parameters{Switch: &asked})
	}
	if !s.apply {
		return a.print(map[string]any{"would_switch": asked, "live": map[string]int64{asked.From: current.Live, asked.To: cas[at].Live}}, func(w io.Writer) {
			_, _ = fmt.Fprintf(w, "would make %s the current generation of issuer %s in place of %s\n", asked.To, issuer, asked.From)
			_, _ = fmt.Fprintf(w, "live certificates: %d of %s, %d of %s\n", current.Live, asked.From, cas[at].Live, asked.To)
			_, _ = fmt.Fprintln(w, "nothing was changed: say --apply")
		})
	}
	var done operator.CASwitch
	if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/cas/switch", asked, &done); err != nil {
		return err
	}
	return a.printSwitch(done)
}

func (a *app) printSwitch(done operator.CASwitch) error {
	return a.print(done, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s is the current generation of issuer %s; requests to %s are still answered\n", done.To, done.Issuer, done.From)
	})
}
