package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol/scep/client"
)

// device is what the commands that act as a device share.
type device struct {
	url, fingerprint, trust string
	out                     string
	keyFile                 string
	keySize                 int
}

func (a *app) scepCmd() *cobra.Command {
	c := &cobra.Command{Use: "scep", Short: "Act as a device: enroll and renew by SCEP"}
	c.AddCommand(a.scepEnrollCmd(), a.scepRenewCmd(), a.scepCapsCmd(), a.scepCACmd())
	return c
}

func (d *device) flags(c *cobra.Command, enrolls bool) {
	f := c.Flags()
	f.StringVar(&d.url, "url", "", "the profile's `URL`, such as https://host/scep/wifi")
	f.StringVar(&d.fingerprint, "ca-fingerprint", "", "`SHA256` of the CA's or root's certificate, hex")
	f.StringVar(&d.trust, "tls-ca", "", "PEM `file` that the server's TLS is trusted by, beside the system's")
	if enrolls {
		f.StringVar(&d.out, "out", "", "new `folder` for key, certificate and CA")
		f.StringVar(&d.keyFile, "key", "", "PEM `file` with the RSA key (default: a new one)")
		f.IntVar(&d.keySize, "key-size", 2048, "`bits` of a new RSA key")
	}
}

// client makes the SCEP client that the flags ask for.
func (d *device) client() (*client.Client, error) {
	if !strings.HasPrefix(d.url, "https://") && !strings.HasPrefix(d.url, "http://") {
		return nil, misused("--url https://host/scep/PROFILE", "no URL: %q", d.url)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if d.trust != "" {
		data, err := os.ReadFile(d.trust)
		if err != nil {
			return nil, failed("", "reading --tls-ca: %w", err)
		}
		if !roots.AppendCertsFromPEM(data) {
			return nil, failed("", "%s holds no PEM certificate", d.trust)
		}
	}
	return &client.Client{URL: d.url, CAFingerprint: d.fingerprint, HTTP: &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, Proxy: http.ProxyFromEnvironment},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("a SCEP server does not redirect")
		},
	}}, nil
}

// key reads the key, or makes one and keeps it before anything is sent: after a
// lost answer the same request can be sent again.
func (d *device) key() (*rsa.PrivateKey, error) {
	var key *rsa.PrivateKey
	if d.keyFile != "" {
		var err error
		if key, err = readKey(d.keyFile); err != nil {
			return nil, err
		}
	} else {
		if d.keySize < 1024 || d.keySize > 8192 {
			return nil, misused("--key-size 2048", "an RSA key has 1024 to 8192 bits here")
		}
		var err error
		if key, err = rsa.GenerateKey(rand.Reader, d.keySize); err != nil {
			return nil, fmt.Errorf("making a key: %w", err)
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(d.out, 0o700); err != nil {
		return nil, failed("--out names a folder that is not there yet", "%w", err)
	}
	return key, put(filepath.Join(d.out, "key.pem"), "PRIVATE KEY", der, 0o600)
}

func put(path, kind string, der []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Close())
}

func readPEM(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, failed("", "%w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, failed("", "%s is not PEM", path)
	}
	return block.Bytes, nil
}

func readKey(path string) (*rsa.PrivateKey, error) {
	der, err := readPEM(path)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		parsed, err = x509.ParsePKCS1PrivateKey(der)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, failed("SCEP answers RSA keys alone", "%s holds no RSA key", path)
	}
	return key, nil
}

// secret reads a challenge from a file or standard input: never from argv, which
// everybody on the machine can read.
func (a *app) secret(path string) ([]byte, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, failed("", "reading the challenge: %w", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	const most = 8 << 10
	data, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil || len(data) > most {
		return nil, failed("", "a challenge has at most %d bytes", most)
	}
	return bytes.TrimRight(data, "\r\n"), nil
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
			if challenge != "" {
				if s.Challenge, err = a.secret(challenge); err != nil {
					return err
				}
			}
			cl, err := d.client()
			if err != nil {
				return err
			}
			key, err := d.key()
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
				return failed("", "%s: %w", in, err)
			}
			oldKey, err := readKey(filepath.Join(in, "key.pem"))
			if err != nil {
				return err
			}
			cl, err := d.client()
			if err != nil {
				return err
			}
			if same {
				d.keyFile = filepath.Join(in, "key.pem")
			}
			key, err := d.key()
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
		return client.Enrollment{}, misused("", "%w", err)
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
		return failed("the key is in "+dir+": --key sends the same request again", "%w", err)
	}
	cert := filepath.Join(dir, "cert.pem")
	if err := put(cert, "CERTIFICATE", r.Certificate.Raw, 0o644); err != nil {
		return err
	}
	if err := put(filepath.Join(dir, "ca.pem"), "CERTIFICATE", r.Chain[0].Raw, 0o644); err != nil {
		return err
	}
	out := issued{"issued", hex.EncodeToString(r.Certificate.SerialNumber.Bytes()), r.Certificate.Subject.String(), r.Certificate.NotAfter,
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
			cl, err := d.client()
			if err != nil {
				return err
			}
			caps, err := cl.Caps(cmd.Context())
			if err != nil {
				return failed("", "%w", err)
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
			cl, err := d.client()
			if err != nil {
				return err
			}
			ca, err := cl.CACert(cmd.Context())
			if err != nil {
				return failed("", "%w", err)
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
		out = append(out, certificate{use, c.Subject.String(), hex.EncodeToString(sum[:])})
	}
	add("ra-sign", ca.RASign)
	add("ra-decrypt", ca.RADecrypt)
	add("ca", ca.CA)
	for _, c := range ca.Chain {
		add("chain", c)
	}
	return out
}
