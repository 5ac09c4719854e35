package main

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol/scep/client"
)

func (a *app) scepCmd() *cobra.Command {
	c := &cobra.Command{Use: "scep", Short: "Act as a device: enroll and renew by SCEP"}
	c.AddCommand(a.scepEnrollCmd(), a.scepRenewCmd(), a.scepCapsCmd(), a.scepCACmd())
	return c
}

func (a *app) scepEnrollCmd() *cobra.Command {
	d := &device{}
	var subject, challenge string
	var san []string
	c := &cobra.Command{
		Use: "enroll --url U --ca-fingerprint SHA256 --subject S --out DIR", Short: "Ask for a first certificate", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.out == "" || subject == "" {
				return misused("--subject 'CN=..' --out DIR", "a subject and a folder are needed")
			}
			s, err := subjectOf(subject, san)
			if err != nil {
				return err
			}
			cl, err := d.client(true)
			if err != nil {
				return err
			}
			if challenge != "" {
				if s.Challenge, err = a.secret(cmd.Context(), challenge); err != nil {
					return err
				}
			}
			key, err := d.prepare(cmd.Context(), cl)
			if err != nil {
				return err
			}
			s.Key = key
			r, err := cl.Enroll(cmd.Context(), s)
			return a.enrolled(d.out, r, err)
		},
	}
	d.flags(c, true)
	c.Flags().StringVar(&subject, "subject", "", "RFC 4514 `subject`")
	c.Flags().StringArrayVar(&san, "san", nil, "subject alternative `name`, such as dns:host.example; may be repeated")
	c.Flags().StringVar(&challenge, "challenge-file", "", "`file` with the challenge; - is standard input")
	return c
}

func (a *app) scepRenewCmd() *cobra.Command {
	d := &device{}
	var in string
	var same bool
	c := &cobra.Command{
		Use: "renew --url U --ca-fingerprint SHA256 --in DIR --out DIR", Short: "Ask for a certificate's successor, signed by it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.out == "" || in == "" {
				return misused("--in DIR --out DIR", "the folder of the certificate and a new one are needed")
			}
			der, err := readPEM(filepath.Join(in, "cert.pem"))
			if err != nil {
				return err
			}
			old, err := x509.ParseCertificate(der)
			if err != nil {
				return failed("--in names a folder that scep enroll made", "%s: %w", in, err)
			}
			oldKey, err := readKey(filepath.Join(in, "key.pem"))
			if err != nil {
				return err
			}
			cl, err := d.client(true)
			if err != nil {
				return err
			}
			if same {
				d.keyFile = filepath.Join(in, "key.pem")
			}
			key, err := d.prepare(cmd.Context(), cl)
			if err != nil {
				return err
			}
			r, err := cl.Renew(cmd.Context(), client.Renewal{OldCert: old, OldKey: oldKey, NewKey: key})
			return a.enrolled(d.out, r, err)
		},
	}
	d.flags(c, true)
	c.Flags().StringVar(&in, "in", "", "`folder` with the certificate and its key")
	c.Flags().BoolVar(&same, "same-key", false, "keep the key, where the profile allows it")
	return c
}

// subjectOf turns what was typed into the name of a CSR.
func subjectOf(text string, san []string) (client.Enrollment, error) {
	attrs, err := policy.ParseSubject(text)
	if err != nil {
		return client.Enrollment{}, misused("--subject 'CN=host.example,O=Example Corp'", "not an RFC 4514 subject: %w", err)
	}
	der, err := policy.EncodeSubject(attrs)
	if err != nil {
		return client.Enrollment{}, misused("--subject 'CN=host.example,O=Example Corp'", "%w", err)
	}
	names, err := dnsNames(san)
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

// enrolled keeps what came, or says why nothing did.
func (a *app) enrolled(dir string, r *client.Result, err error) error {
	if refused, ok := errors.AsType[*client.FailError](err); ok {
		if a.json() {
			if err := json.NewEncoder(a.out).Encode(failure{"failure", refused.FailInfo, refused.Name, refused.Text}); err != nil {
				return err
			}
		}
		return failed("the CA's log has all reasons: postern audit show --req ID", "%w", refused)
	}
	if err != nil {
		return failed("--key "+filepath.Join(dir, "key.pem")+" with a new --out sends the same request again", "%w", err)
	}
	cert := filepath.Join(dir, "cert.pem")
	if err := put(cert, "CERTIFICATE", r.Certificate.Raw, 0o644); err != nil {
		return err
	}
	if err := put(filepath.Join(dir, "ca.pem"), "CERTIFICATE", r.Chain[0].Raw, 0o644); err != nil {
		return err
	}
	out := issued{"issued", hex.EncodeToString(r.Certificate.SerialNumber.Bytes()), nameOf(r.Certificate), r.Certificate.NotAfter,
		r.TransactionID, cert, filepath.Join(dir, "key.pem")}
	return a.print(out, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "issued\t%s\nserial\t%s\nuntil\t%s\ncertificate\t%s\nkey\t%s\n", out.Subject, out.Serial, out.NotAfter.Format(time.RFC3339), out.Certificate, out.Key)
	})
}

func (a *app) scepCapsCmd() *cobra.Command {
	d := &device{}
	c := &cobra.Command{
		Use: "getcacaps --url U", Short: "Print the server's capabilities", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := d.client(false)
			if err != nil {
				return err
			}
			caps, err := cl.Caps(cmd.Context())
			if err != nil {
				return failed(serverHint(err), "%w", err)
			}
			return a.print(caps, func(w io.Writer) { _, _ = fmt.Fprintln(w, strings.Join(caps, "\n")) })
		},
	}
	d.flags(c, false)
	return c
}

func (a *app) scepCACmd() *cobra.Command {
	d := &device{}
	c := &cobra.Command{
		Use: "getcacert --url U --ca-fingerprint SHA256", Short: "Fetch and check the CA's and RA's certificates", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := d.client(true)
			if err != nil {
				return err
			}
			ca, err := cl.CACert(cmd.Context())
			if err != nil {
				return failed(serverHint(err), "%w", err)
			}
			return a.print(certificates(ca), func(w io.Writer) {
				for _, c := range certificates(ca) {
					_, _ = fmt.Fprintf(w, "%s\t%s\tSHA-256 %s\n", c.Use, c.Subject, c.SHA256)
				}
			})
		},
	}
	d.flags(c, false)
	return c
}

type certificate struct {
	Use     string `json:"use"`
	Subject string `json:"subject"`
	SHA256  string `json:"sha256"`
}

func certificates(ca *client.CA) []certificate {
	var out []certificate
	add := func(use string, c *x509.Certificate) {
		sum := sha256.Sum256(c.Raw)
		out = append(out, certificate{use, nameOf(c), hex.EncodeToString(sum[:])})
	}
	add("ra-sign", ca.RASign)
	add("ra-decrypt", ca.RADecrypt)
	add("ca", ca.CA)
	for _, c := range ca.Chain {
		add("chain", c)
	}
	return out
}

// nameOf is the subject as RFC 4514 writes it: [pkix.Name] would write its
// attributes in an order of its own.
func nameOf(c *x509.Certificate) string {
	var rdns pkix.RDNSequence
	if _, err := asn1.Unmarshal(c.RawSubject, &rdns); err != nil {
		return c.Subject.String()
	}
	return rdns.String()
}
