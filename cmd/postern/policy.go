package main

import (
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/config"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol/pkcs10"
)

func (a *app) policyCmd() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Check profiles, and explain what they make of a request"}
	c.AddCommand(a.policyCheckCmd(), a.policyExplainCmd())
	return c
}

// policies loads the files that were named, or else the configuration's.
func (a *app) policies(files []string) (*policy.Set, error) {
	if len(files) == 0 {
		cfg, err := config.Load(a.config)
		if err != nil {
			return nil, failed("each line names file, line and column", "%w", err)
		}
		return cfg.Policies, nil
	}
	var sources []policy.Source
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return nil, failed("", "reading profiles: %w", err)
		}
		sources = append(sources, policy.Source{Name: f, Data: data})
	}
	set, err := policy.Load(sources...)
	if err != nil {
		return nil, failed("each line names file, line and column", "%w", err)
	}
	return set, nil
}

func (a *app) policyCheckCmd() *cobra.Command {
	return &cobra.Command{
		Use: "check [FILE...]", Short: "Check files of profiles (default: the configuration's), and name every fault",
		RunE: func(_ *cobra.Command, args []string) error {
			set, err := a.policies(args)
			if err != nil {
				return err
			}
			return a.print(map[string]any{"policy": set.Digest(), "profiles": set.Names()}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "good: profiles %s\n%s\n", strings.Join(set.Names(), ", "), set.Digest())
			})
		},
	}
}

// explanation is the JSON of `policy explain`.
type explanation struct {
	Profile string          `json:"profile"`
	Issue   bool            `json:"issue"`
	Waits   bool            `json:"waits,omitempty"` // for an operator's approval
	Policy  string          `json:"policy"`
	Checks  []policy.Check  `json:"checks"`
	Reasons []policy.Reason `json:"reasons"`
}

func (a *app) policyExplainCmd() *cobra.Command {
	var csrFile, profile string
	var files []string
	explain := &cobra.Command{
		Use: "explain --csr FILE --profile NAME", Short: "Print each rule, what it saw in a CSR and its verdict, as if a challenge and all validators vouched for it", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if csrFile == "" || profile == "" {
				return misused("--csr FILE --profile NAME", "name a CSR and a profile")
			}
			set, err := a.policies(files)
			if err != nil {
				return err
			}
			rules, ok := set.Profile(profile)
			if !ok {
				return failed("profiles: "+strings.Join(set.Names(), ", "), "no profile %q", profile)
			}
			csr, err := a.readCSR(csrFile)
			if err != nil {
				return err
			}
			f := authority.FactsOf(profile, csr, time.Now())
			f.Validators = rules.Challenge.AllVouched()
			d := set.Decide(f)
			e := explanation{profile, d.Issue, d.Issue && rules.Waits(policy.KindNew), d.Digest, d.Checks, append([]policy.Reason{}, d.Reasons...)}
			if err := a.print(e, func(w io.Writer) { printExplanation(w, e) }); err != nil {
				return err
			}
			if !d.Issue {
				return quiet(1)
			}
			return nil
		},
	}
	explain.Flags().StringVar(&csrFile, "csr", "", "PKCS#10 `file`, PEM or DER; - is standard input")
	explain.Flags().StringVar(&profile, "profile", "", "`profile` to decide by")
	explain.Flags().StringArrayVar(&files, "policy", nil, "`file` of profiles (default: the configuration's); may be repeated")
	return explain
}

// maxCSR bounds what is read as a CSR.
const maxCSR = 64 << 10

func (a *app) readCSR(path string) (*pkcs10.Request, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, failed("", "reading the CSR: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxCSR+1))
	if err != nil {
		return nil, failed("", "reading the CSR: %w", err)
	}
	if len(data) > maxCSR {
		return nil, failed("", "the CSR is larger than %d bytes", maxCSR)
	}
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	csr, err := pkcs10.Parse(data)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, failed("openssl req -in FILE -text shows it", "not a PKCS#10 request with a good signature: %w", err)
	}
	return csr, nil
}

func printExplanation(w io.Writer, e explanation) {
	for _, c := range e.Checks {
		verdict := "ok"
		if !c.OK {
			verdict = "NO"
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", verdict, c.Rule, c.Saw, c.Say)
	}
	switch {
	case e.Waits:
		_, _ = fmt.Fprintf(w, "profile %s would have it wait for an operator's approval\n", e.Profile)
	case e.Issue:
		_, _ = fmt.Fprintf(w, "profile %s would issue\n", e.Profile)
	default:
		_, _ = fmt.Fprintf(w, "profile %s would refuse, for %d reason(s)\n", e.Profile, len(e.Reasons))
	}
}
