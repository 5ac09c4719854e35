package main

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/cmd/postern/cli"
)

// written is how a command writes its act down instead of doing it.
type written struct {
	file string
	ttl  time.Duration
}

func (w *written) flags(c *cobra.Command) {
	c.Flags().StringVar(&w.file, "act", "", "write the act to a new `file` for people to sign, instead of doing it")
	c.Flags().DurationVar(&w.ttl, "act-ttl", time.Hour, "`time` in which the act has to be signed and sent")
}

// writeAct writes an act for the log as it is now.
func (a *app) writeAct(cmd *cobra.Command, w written, name string, p acts.Parameters) error {
	if w.ttl < time.Second || w.ttl > acts.MaxLife {
		return misused("--act-ttl 1h", "an act ends in at most %s", acts.MaxLife)
	}
	var s operator.Status
	if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/status", nil, &s); err != nil {
		return err
	}
	order := acts.NewOrder(name, p, s.Log.Origin, acts.Place{Size: s.Log.Size, Last: s.Log.Last}, time.Now().Add(w.ttl))
	if _, err := order.Canonical(); err != nil {
		return failed("split the batch", "%w", err)
	}
	signed := acts.Signed{Order: order, Signatures: []acts.Signature{}}
	data, err := encodeAct(signed)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(w.file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return failed("--act names a file that is not there yet", "%w", err)
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return a.printAct(signed, fmt.Sprintf("%d people sign it: postern act sign --key FILE --cert FILE %s", acts.Signers, w.file))
}

func encodeAct(s acts.Signed) ([]byte, error) {
	data, err := json.MarshalIndent(s, "", "  ")
	return append(data, '\n'), err
}

func (a *app) actCmd() *cobra.Command {
	c := &cobra.Command{Use: "act", Short: "Sign and send acts that take two people"}
	show := &cobra.Command{
		Use: "show FILE", Short: "Say what an act does and who signed it", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			signed, err := readAct(args[0])
			if err != nil {
				return err
			}
			if err := a.printAct(signed, ""); err != nil {
				return err
			}
			return checkSignatures(signed)
		},
	}
	submit := &cobra.Command{
		Use: "submit FILE", Short: "Send an act that two people have signed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			signed, err := readAct(args[0])
			if err != nil {
				return err
			}
			return a.submit(cmd, signed)
		},
	}
	c.AddCommand(show, a.actSignCmd(), submit)
	return c
}

func (a *app) submit(cmd *cobra.Command, signed acts.Signed) error {
	switch signed.Order.Act {
	case acts.ApprovePending, acts.DenyPending:
		var done operator.Ruled
		if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/acts", signed, &done); err != nil {
			return err
		}
		return a.printRuled(done)
	case acts.SwitchCA:
		var done operator.CASwitch
		if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/acts", signed, &done); err != nil {
			return err
		}
		return a.printSwitch(done)
	case acts.RevokeChallenge:
		var done operator.Revoked
		if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/acts", signed, &done); err != nil {
			return err
		}
		return a.printRevoked(done)
	}
	if signed.Order.Act == acts.RevokeCertificate {
		var done operator.RevokedCertificate
		if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/acts", signed, &done); err != nil {
			return err
		}
		return a.printRevokedCertificate(done)
	}
	var made []operator.Challenge
	if err := a.call(cmd.Context(), http.MethodPost, "/api/v1/acts", signed, &made); err != nil {
		return err
	}
	if signed.Order.Act == acts.CreateChallenge && len(made) == 1 {
		return a.printChallenge(made[0])
	}
	for _, m := range made {
		if err := a.batchLine(m); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) actSignCmd() *cobra.Command {
	var keyFile, certFile string
	sign := &cobra.Command{
		Use: "sign FILE", Short: "Say what an act does, and add your signature to its file", Args: cobra.ExactArgs(1),
		Example: "  postern act sign --key alice.key --cert alice.pem act.json",
		RunE: func(_ *cobra.Command, args []string) error {
			if keyFile == "" || certFile == "" {
				return misused("--key FILE --cert FILE", "a signature needs your key and your certificate")
			}
			signed, err := readAct(args[0])
			if err != nil {
				return err
			}
			key, err := signerOf(keyFile, certFile)
			if err != nil {
				return err
			}
			if signed, err = signAct(signed, key); err != nil {
				return err
			}
			if err := replaceAct(args[0], signed); err != nil {
				return err
			}
			hint := "postern act submit " + args[0]
			if n := len(signed.Signatures); n < acts.Signers {
				hint = fmt.Sprintf("%d of %d people have signed it", n, acts.Signers)
			}
			return a.printAct(signed, hint)
		},
	}
	sign.Flags().StringVar(&keyFile, "key", "", "PEM `file` with your private key")
	sign.Flags().StringVar(&certFile, "cert", "", "PEM `file` with your operator's certificate")
	return sign
}

// signAct adds a signature to those that are there, which have to be good: nobody
// signs beside one that is not.
func signAct(signed acts.Signed, key crypto.Signer) (acts.Signed, error) {
	canonical, err := signed.Order.Canonical()
	if err != nil {
		return signed, err
	}
	if until, err := signed.Order.Until(); err != nil || !time.Now().Before(until) {
		return signed, failed("write a new one", "the act ended at %s", signed.Order.Expires)
	}
	sig, err := acts.Sign(key, canonical)
	if err != nil {
		return signed, failed("", "signing: %w", err)
	}
	if slices.ContainsFunc(signed.Signatures, func(s acts.Signature) bool { return s.ID() == sig.ID() }) {
		return signed, failed("somebody else has to sign it too", "you have signed this act already")
	}
	if err := checkSignatures(signed); err != nil {
		return signed, err
	}
	if len(signed.Signatures) == acts.MaxSignatures {
		return signed, failed("", "the act has %d signatures already", acts.MaxSignatures)
	}
	signed.Signatures = append(slices.Clone(signed.Signatures), sig)
	return signed, nil
}

// checkSignatures says whether all are good; whose they are is for the service.
func checkSignatures(signed acts.Signed) error {
	canonical, err := signed.Order.Canonical()
	if err != nil {
		return err
	}
	for _, s := range signed.Signatures {
		if err := s.Verify(canonical); err != nil {
			return failed("was the act changed after it was signed? write a new one", "the signature of %s: %w", s.ID(), err)
		}
	}
	return nil
}

func readAct(path string) (acts.Signed, error) {
	f, err := os.Open(path)
	if err != nil {
		return acts.Signed{}, failed("", "reading the act: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxAnswer))
	if err != nil {
		return acts.Signed{}, failed("", "reading the act: %w", err)
	}
	signed, err := acts.ParseSigned(data)
	if err != nil {
		return acts.Signed{}, failed("postern challenge create --act FILE writes one", "%s: %w", path, err)
	}
	return signed, nil
}

// replaceAct puts the act with one more signature in the place of the file, whole
// or not at all.
func replaceAct(path string, signed acts.Signed) error {
	data, err := encodeAct(signed)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".act-")
	if err != nil {
		return failed("may you write into that folder?", "%w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if st, statErr := os.Stat(path); err == nil && statErr == nil {
		err = os.Chmod(f.Name(), st.Mode().Perm()) // others may be meant to read it
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// signerOf reads a person's key, and makes sure that it is the certificate's.
func signerOf(keyFile, certFile string) (crypto.Signer, error) {
	der, err := cli.ReadPEM(certFile)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, failed("--cert names your operator's certificate", "%s holds no certificate", certFile)
	}
	data, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, failed("", "%w", err)
	}
	var key crypto.Signer
	for block, rest := pem.Decode(data); block != nil && key == nil; block, rest = pem.Decode(rest) {
		key = parseKey(block.Bytes) // openssl ecparam writes the curve before the key
	}
	if key == nil {
		return nil, failed("openssl pkey -in FILE -out PLAIN takes a passphrase off, for as long as you need it", "%s holds no private key that can be read", keyFile)
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, failed("--key and --cert of the same person", "the key in %s is not that of the certificate in %s", keyFile, certFile)
	}
	return key, nil
}

func parseKey(der []byte) crypto.Signer {
	if k, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		key, _ := k.(crypto.Signer)
		return key
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k
	}
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k
	}
	return nil
}

// printAct prints the act as a person has to read it before they sign, and what is
// to be done next.
func (a *app) printAct(signed acts.Signed, next string) error {
	return a.print(signed, func(w io.Writer) {
		o := signed.Order
		p := func(key, format string, args ...any) { _, _ = fmt.Fprintf(w, key+"\t"+format+"\n", args...) }
		p("act", "%s", o.Act)
		p("id", "%s", o.ID)
		p("log", "%s, after %d records", shown(o.Origin), o.Place.Size)
		p("ends", "%s", o.Expires)
		if o.Act == acts.RevokeChallenge {
			p("revokes", "challenge %s", shown(o.Parameters.Challenge))
		}
		if id := o.Parameters.Pending; id != "" {
			p("request", "%s, which has to have the digest that postern pending show %s prints", shown(id), shown(id))
			p("digest", "%s", o.Parameters.Digest)
			p("reason", "%s", shown(o.Parameters.Reason))
		}
		if o.Act == acts.RevokeCertificate {
			p("revokes", "certificate %s for %s", shown(o.Parameters.Certificate), shown(o.Parameters.Reason))
		}
		if s := o.Parameters.Switch; s != nil {
			p("switches", "issuer %s from generation %s to %s", shown(s.Issuer), shown(s.From), shown(s.To))
		}
		for _, c := range o.Parameters.Challenges {
			names := []string{shown(c.Subject)}
			for _, n := range c.DNS {
				names = append(names, "dns:"+shown(n))
			}
			if c.TTL != "" {
				names = append(names, "for "+shown(c.TTL))
			}
			p("challenge", "%s\t%s", shown(c.Profile), strings.Join(names, "  "))
		}
		canonical, err := o.Canonical()
		for _, s := range signed.Signatures {
			good := "good signature"
			if err != nil || s.Verify(canonical) != nil {
				good = "BAD SIGNATURE"
			}
			p("signed", "%s\t%s", s.ID(), good)
		}
		if next != "" {
			p("next", "%s", next)
		}
	})
}
