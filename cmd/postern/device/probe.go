package device

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/protocol/scep/probe"
)

func (e commands) probe() *cobra.Command {
	s := &server{}
	var insecure bool
	var fail string
	c := &cobra.Command{
		Use: "probe --url U", Short: "Find out what a SCEP server offers and gets wrong", Args: cobra.NoArgs,
		Long: `Find out what a SCEP server offers and gets wrong, this one or anybody's. It sends some forty small questions; none
is a request that could be granted. Findings are ok, info, weak (permitted, and bad for somebody) or wrong (not as
RFC 8894 has it, or a way in). Exits 0 when it could look, whatever it found, unless --fail says otherwise.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if fail != "" && !slices.Contains([]string{"weak", "wrong"}, fail) {
				return cli.Misused("--fail weak or --fail wrong", "no severity %q", fail)
			}
			roots, err := s.roots()
			if err != nil {
				return err
			}
			o := probe.Options{URL: s.URL, Roots: roots, Insecure: insecure, Proxy: http.ProxyFromEnvironment}
			if s.NoProxy {
				o.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
			}
			if insecure && strings.HasPrefix(s.URL, "http://") {
				_, _ = io.WriteString(e.ErrOut, "postern: plain http: whoever is on the way can change what is found\n")
			}
			r, err := probe.Run(cmd.Context(), o)
			switch {
			case errors.Is(err, probe.ErrURL):
				return cli.Misused("--url https://host/scep/PROFILE", "%w", err)
			case errors.Is(err, probe.ErrInsecure):
				return cli.Failed("--tls-ca FILE trusts it; --insecure-transport probes it all the same", "%w", err)
			case err != nil:
				return cli.Failed(serverHint(err), "%w", err)
			}
			if err := e.Print(r, func(w io.Writer) { printReport(w, r) }); err != nil {
				return err
			}
			if fail != "" && r.Worst().AtLeast(probe.Severity(fail)) {
				return cli.Failed("each line says what would be right", "there are findings that are %s or worse", fail)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&s.URL, "url", "", "the server's `URL`, such as https://host/scep/wifi")
	f.StringVar(&s.TLSCA, "tls-ca", "", "PEM `file` that the server's TLS is trusted by, beside the system's")
	f.BoolVar(&s.NoProxy, "no-proxy", false, "ask the server itself, whatever HTTPS_PROXY says")
	f.BoolVar(&insecure, "insecure-transport", false, "probe http:// too, and TLS that nobody vouches for")
	f.StringVar(&fail, "fail", "", "exit 1 if anything is `weak or wrong` (that, or worse)")
	return c
}

func printReport(w io.Writer, r *probe.Report) {
	_, _ = fmt.Fprintln(w, "SEVERITY\tFINDING\tSAW")
	for _, f := range r.Findings {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", f.Severity, f.ID, f.Saw)
		if f.Severity.AtLeast(probe.Weak) {
			_, _ = fmt.Fprintf(w, "\t\tright: %s\n", f.Says)
		}
	}
}
