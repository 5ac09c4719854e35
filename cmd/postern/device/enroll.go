package device

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol/scep/client"
)

const waits = "\n\nExits 0 with the certificate, 1 without one, 2 misused, 3 while the CA has not decided: what it takes to ask\nagain is then in the folder, and \"postern scep poll --out DIR\" goes on."

func (e commands) enroll() *cobra.Command {
	t, w := &target{}, &waiting{}
	var subject, challenge string
	var san []string
	c := &cobra.Command{
		Use: "enroll --url U --ca-fingerprint SHA256 --subject S --out DIR", Short: "Ask for a first certificate", Args: cobra.NoArgs,
		Long: "Ask for a first certificate, with a new key or --key, and a challenge from a file or standard input." + waits,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if t.out == "" || subject == "" {
				return cli.Misused("--subject 'CN=..' --out DIR", "a subject and a folder are needed")
			}
			s, err := subjectOf(subject, san)
			if err != nil {
				return err
			}
			cl, err := t.client(true)
			if err != nil {
				return err
			}
			if err := w.check(); err != nil {
				return err
			}
			if challenge != "" {
				if s.Challenge, err = e.secret(cmd.Context(), challenge); err != nil {
					return err
				}
			}
			if s.Key, err = t.prepare(cmd.Context(), cl); err != nil {
				return err
			}
			r, err := cl.Enroll(cmd.Context(), s)
			return e.answered(cmd.Context(), cl, w, folder{dir: t.out, server: t.server, signerKey: keyFile}, r, err)
		},
	}
	t.flags(c)
	w.flags(c)
	c.Flags().StringVar(&subject, "subject", "", "RFC 4514 `subject`")
	c.Flags().StringArrayVar(&san, "san", nil, "subject alternative `name`, such as dns:host.example; may be repeated")
	c.Flags().StringVar(&challenge, "challenge-file", "", "`file` with the challenge; - is standard input")
	return c
}

func (e commands) renew() *cobra.Command {
	t, w := &target{}, &waiting{}
	var in string
	var same bool
	c := &cobra.Command{
		Use: "renew --url U --ca-fingerprint SHA256 --in DIR --out DIR", Short: "Ask for a certificate's successor, signed by it", Args: cobra.NoArgs,
		Long: "Ask for a certificate's successor, signed by it, without a challenge; with a new key, --key, or --same-key." + waits,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if t.out == "" || in == "" {
				return cli.Misused("--in DIR --out DIR", "the folder of the certificate and a new one are needed")
			}
			old, oldKey, err := readIdentity(in)
			if err != nil {
				return err
			}
			cl, err := t.client(true)
			if err != nil {
				return err
			}
			if err := w.check(); err != nil {
				return err
			}
			if same {
				t.keyFile = filepath.Join(in, keyFile)
			}
			key, err := t.prepare(cmd.Context(), cl)
			if err != nil {
				return err
			}
			signerKey, err := filepath.Abs(filepath.Join(in, keyFile))
			if err != nil {
				return err
			}
			r, err := cl.Renew(cmd.Context(), client.Renewal{OldCert: old, OldKey: oldKey, NewKey: key})
			return e.answered(cmd.Context(), cl, w, folder{dir: t.out, server: t.server, signerKey: signerKey}, r, err)
		},
	}
	t.flags(c)
	w.flags(c)
	c.Flags().StringVar(&in, "in", "", "`folder` with the certificate and its key")
	c.Flags().BoolVar(&same, "same-key", false, "keep the key, where the profile allows it")
	return c
}

// subjectOf turns what was typed into the name of a CSR.
func subjectOf(text string, san []string) (client.Enrollment, error) {
	attrs, err := policy.ParseSubject(text)
	if err != nil {
		return client.Enrollment{}, cli.Misused("--subject 'CN=host.example,O=Example Corp'", "not an RFC 4514 subject: %w", err)
	}
	der, err := policy.EncodeSubject(attrs)
	if err != nil {
		return client.Enrollment{}, cli.Misused("--subject 'CN=host.example,O=Example Corp'", "%w", err)
	}
	names, err := cli.DNSNames(san)
	return client.Enrollment{RawSubject: der, DNSNames: names}, err
}

// failure is the JSON of a refusal.
type failure struct {
	Status   string `json:"status"`
	FailInfo int    `json:"fail_info"`
	Name     string `json:"fail_info_name"`
	Text     string `json:"text"`
}

// issued is the JSON of a certificate that came.
type issued struct {
	Status      string    `json:"status"`
	Serial      string    `json:"serial"`
	Subject     string    `json:"subject"`
	NotAfter    time.Time `json:"not_after"`
	Transaction string    `json:"transaction"`
	Certificate string    `json:"certificate"`
	Key         string    `json:"key"`
}

// undecided is the JSON of a request that is pending.
type undecided struct {
	Status      string `json:"status"`
	Transaction string `json:"transaction"`
	Folder      string `json:"folder"`
}

// answered keeps what came, says that it is pending, or says why nothing came.
func (e commands) answered(ctx context.Context, cl *client.Client, w *waiting, f folder, r *client.Result, err error) error {
	if p, ok := errors.AsType[*client.PendingError](err); ok {
		if err := f.keep(p.Pending, cl.Nonces().All()); err != nil {
			return err
		}
		r, err = w.wait(ctx, cl, f, p)
	}
	if p, ok := errors.AsType[*client.PendingError](err); ok {
		return e.pending(f, p)
	}
	if refused, ok := errors.AsType[*client.FailError](err); ok {
		return e.refused(refused)
	}
	if hinted, ok := errors.AsType[*cli.Error](err); ok {
		return hinted
	}
	if err != nil {
		return cli.Failed("--key "+filepath.Join(f.dir, keyFile)+" with a new --out sends the same request again", "%w", err)
	}
	return e.enrolled(f, r)
}

func (e commands) pending(f folder, p *client.PendingError) error {
	if e.JSON() {
		if err := json.NewEncoder(e.Out).Encode(undecided{"pending", p.TransactionID, f.dir}); err != nil {
			return err
		}
	}
	return &cli.Error{Err: p, Hint: "postern scep poll --out " + f.dir, Code: ExitPending}
}

func (e commands) refused(err *client.FailError) error {
	if e.JSON() {
		if err := json.NewEncoder(e.Out).Encode(failure{"failure", err.FailInfo, err.Name, err.Text}); err != nil {
			return err
		}
	}
	return cli.Failed("the CA's log has all reasons: postern audit show --req ID", "%w", err)
}

func (e commands) enrolled(f folder, r *client.Result) error {
	cert := filepath.Join(f.dir, certFile)
	if err := put(cert, "CERTIFICATE", 0o644, r.Certificate.Raw); err != nil {
		return err
	}
	if err := put(filepath.Join(f.dir, caFile), "CERTIFICATE", 0o644, r.Chain[0].Raw); err != nil {
		return err
	}
	if err := f.done(); err != nil {
		return err
	}
	out := issued{"issued", serialOf(r.Certificate), nameOf(r.Certificate), r.Certificate.NotAfter, r.TransactionID, cert, filepath.Join(f.dir, keyFile)}
	return e.Print(out, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "issued\t%s\nserial\t%s\nuntil\t%s\ncertificate\t%s\nkey\t%s\n", cli.Shown(out.Subject), out.Serial, out.NotAfter.Format(time.RFC3339), out.Certificate, out.Key)
	})
}

func serialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }

// nameOf is the subject as RFC 4514 writes it: [pkix.Name] would write its
// attributes in an order of its own.
func nameOf(c *x509.Certificate) string {
	var rdns pkix.RDNSequence
	if _, err := asn1.Unmarshal(c.RawSubject, &rdns); err != nil {
		return c.Subject.String()
	}
	return rdns.String()
}
