package device

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/cmd/postern/cli"
	"github.com/postern-pki/postern/protocol/scep/client"
)

func (e commands) getCaps() *cobra.Command {
	s := &server{}
	c := &cobra.Command{
		Use: "getcacaps --url U", Short: "Print the server's capabilities", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := s.client(false)
			if err != nil {
				return err
			}
			caps, err := cl.Caps(cmd.Context())
			if err != nil {
				return cli.Failed(serverHint(err), "%w", err)
			}
			return e.Print(caps, func(w io.Writer) { _, _ = fmt.Fprintln(w, strings.Join(caps, "\n")) })
		},
	}
	s.flags(c)
	return c
}

func (e commands) getCA() *cobra.Command {
	s, out := &server{}, ""
	c := &cobra.Command{
		Use: "getcacert --url U --ca-fingerprint SHA256", Short: "Fetch and check the CA's and RA's certificates", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := s.client(true)
			if err != nil {
				return err
			}
			ca, err := cl.CACert(cmd.Context())
			if err != nil {
				return cli.Failed(serverHint(err), "%w", err)
			}
			return e.printCA(out, ca, ca.Certificates())
		},
	}
	s.flags(c)
	s.anchor(c)
	c.Flags().StringVar(&out, "out", "", "new `folder` for ca.pem, and certs.pem with all of them")
	return c
}

func (e commands) getNextCA() *cobra.Command {
	s, out := &server{}, ""
	c := &cobra.Command{
		Use: "getnextca --url U --ca-fingerprint SHA256", Short: "Fetch the next CA, for which the current one has to vouch", Args: cobra.NoArgs,
		Long: "Fetch the next CA, for which the current one has to vouch. With --out, enroll and renew can use it before GetCACert\nhas it: --ca-certs DIR/certs.pem, with the next CA's --ca-fingerprint.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := s.client(true)
			if err != nil {
				return err
			}
			next, err := cl.NextCACert(cmd.Context())
			if status, ok := errors.AsType[*client.StatusError](err); ok && status.Code == http.StatusNotFound {
				return cli.Failed("getcacaps lists GetNextCACert while one is announced", "there is no next CA, or no such URL: %w", err)
			}
			if err != nil {
				return cli.Failed(serverHint(err), "%w", err)
			}
			return e.printCA(out, next.CA, next.Certificates)
		},
	}
	s.flags(c)
	s.anchor(c)
	c.Flags().StringVar(&out, "out", "", "new `folder` for ca.pem, and certs.pem with all of them")
	return c
}

type certificate struct {
	Use     string    `json:"use"`
	Subject string    `json:"subject"`
	SHA256  string    `json:"sha256"`
	From    time.Time `json:"not_before"`
	Until   time.Time `json:"not_after"`
}

// printCA prints what each certificate is for, and keeps them. ca is nil if nobody
// could enroll with them.
func (e commands) printCA(dir string, ca *client.CA, all []*x509.Certificate) error {
	list := certificates(ca, all)
	if dir != "" {
		if err := makeDir(dir); err != nil {
			return err
		}
		var ders [][]byte
		for _, c := range all {
			ders = append(ders, c.Raw)
		}
		if err := put(filepath.Join(dir, "certs.pem"), "CERTIFICATE", 0o644, ders...); err != nil {
			return err
		}
		if ca != nil {
			if err := put(filepath.Join(dir, caFile), "CERTIFICATE", 0o644, ca.CA.Raw); err != nil {
				return err
			}
		}
	}
	return e.Print(list, func(w io.Writer) {
		for _, c := range list {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s to %s\tSHA-256 %s\n", c.Use, cli.Shown(c.Subject), c.From.Format(time.DateOnly), c.Until.Format(time.DateOnly), c.SHA256)
		}
	})
}

func certificates(ca *client.CA, all []*x509.Certificate) []certificate {
	out := []certificate{}
	add := func(use string, c *x509.Certificate) {
		sum := sha256.Sum256(c.Raw)
		out = append(out, certificate{use, nameOf(c), hex.EncodeToString(sum[:]), c.NotBefore, c.NotAfter})
	}
	if ca == nil {
		for _, c := range all {
			add("unknown", c)
		}
		return out
	}
	add("ra-sign", ca.RASign)
	add("ra-decrypt", ca.RADecrypt)
	add("ca", ca.CA)
	for _, c := range ca.Chain {
		add("chain", c)
	}
	return out
}

// question is what getcert and getcrl share.
type question struct {
	server
	serial, in, out string
}

func (q *question) flags(c *cobra.Command) {
	q.messages(c)
	c.Flags().StringVar(&q.serial, "serial", "", "`serial` number in hex; colons are allowed")
	c.Flags().StringVar(&q.in, "in", "", "`folder` with a certificate and its key to ask with (default: a key for this question alone)")
	c.Flags().StringVar(&q.out, "out", "", "new `folder` for what comes")
}

// prepare returns the client, who asks, and what is asked for.
func (q *question) prepare() (*client.Client, client.Identity, *big.Int, error) {
	var as client.Identity
	var serial *big.Int
	if q.in != "" {
		cert, key, err := readIdentity(q.in)
		if err != nil {
			return nil, as, nil, err
		}
		as, serial = client.Identity{Certificate: cert.Raw, Key: key}, cert.SerialNumber
	}
	if q.serial != "" {
		b, err := hex.DecodeString(strings.ReplaceAll(q.serial, ":", ""))
		if err != nil || len(b) == 0 || len(b) > 32 {
			return nil, as, nil, cli.Misused("openssl x509 -in FILE -noout -serial", "no serial number in hex: %q", q.serial)
		}
		serial = new(big.Int).SetBytes(b)
	}
	if serial == nil {
		return nil, as, nil, cli.Misused("--serial HEX or --in DIR", "it has to be said which certificate is meant")
	}
	cl, err := q.client(true)
	return cl, as, serial, err
}

// found is the JSON of a certificate that a server has.
type found struct {
	Serial   string    `json:"serial"`
	Subject  string    `json:"subject"`
	From     time.Time `json:"not_before"`
	NotAfter time.Time `json:"not_after"`
	PEM      string    `json:"pem"`
}

func (e commands) getCert() *cobra.Command {
	q := &question{}
	c := &cobra.Command{
		Use: "getcert --url U --ca-fingerprint SHA256 --serial HEX", Short: "Fetch a certificate that the CA issued", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, as, serial, err := q.prepare()
			if err != nil {
				return err
			}
			cert, err := cl.Certificate(cmd.Context(), as, serial)
			if err != nil {
				return cli.Failed(serverHint(err), "%w", err)
			}
			if q.out != "" {
				if err := makeDir(q.out); err != nil {
					return err
				}
				if err := put(filepath.Join(q.out, certFile), "CERTIFICATE", 0o644, cert.Raw); err != nil {
					return err
				}
			}
			text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
			out := found{serialOf(cert), nameOf(cert), cert.NotBefore, cert.NotAfter, text}
			return e.Print(out, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "serial\t%s\nsubject\t%s\nvalid\t%s to %s\n%s", out.Serial, cli.Shown(out.Subject), out.From.Format(time.RFC3339), out.NotAfter.Format(time.RFC3339), text)
			})
		},
	}
	q.flags(c)
	return c
}

// revocations is the JSON of a CRL. Reason is a number of RFC 5280, section 5.3.1.
type revocations struct {
	Number     string     `json:"number"`
	ThisUpdate time.Time  `json:"this_update"`
	NextUpdate time.Time  `json:"next_update"`
	Revoked    int        `json:"revoked"`
	Serial     string     `json:"serial"`
	Status     string     `json:"status"` // of the serial: good or revoked
	Since      *time.Time `json:"since,omitempty"`
	Reason     int        `json:"reason"`
}

func (e commands) getCRL() *cobra.Command {
	q := &question{}
	c := &cobra.Command{
		Use: "getcrl --url U --ca-fingerprint SHA256 --serial HEX", Short: "Fetch the CA's CRL, and say whether a certificate is on it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, as, serial, err := q.prepare()
			if err != nil {
				return err
			}
			crl, err := cl.CRL(cmd.Context(), as, serial)
			if err != nil {
				return cli.Failed(serverHint(err), "%w", err)
			}
			if q.out != "" {
				if err := makeDir(q.out); err != nil {
					return err
				}
				if err := put(filepath.Join(q.out, "crl.pem"), "X509 CRL", 0o644, crl.Raw); err != nil {
					return err
				}
			}
			return e.printCRL(crl, serial)
		},
	}
	q.flags(c)
	return c
}

func (e commands) printCRL(crl *x509.RevocationList, serial *big.Int) error {
	out := revocations{
		ThisUpdate: crl.ThisUpdate, NextUpdate: crl.NextUpdate, Revoked: len(crl.RevokedCertificateEntries),
		Serial: hex.EncodeToString(serial.Bytes()), Status: "good",
	}
	if crl.Number != nil {
		out.Number = crl.Number.String()
	}
	for _, r := range crl.RevokedCertificateEntries {
		if r.SerialNumber.Cmp(serial) == 0 {
			out.Status, out.Since, out.Reason = "revoked", &r.RevocationTime, r.ReasonCode
		}
	}
	return e.Print(out, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "number\t%s\nfrom\t%s\nnext\t%s\nrevoked\t%d\nserial\t%s\t%s", out.Number, out.ThisUpdate.Format(time.RFC3339), out.NextUpdate.Format(time.RFC3339), out.Revoked, out.Serial, out.Status)
		if out.Since != nil {
			_, _ = fmt.Fprintf(w, "\tsince %s, reason %d", out.Since.Format(time.RFC3339), out.Reason)
		}
		_, _ = fmt.Fprintln(w)
	})
}
