package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ocsp"

	"github.com/postern-pki/postern/appliance/operator"
	"github.com/postern-pki/postern/appliance/operator/acts"
)

func (a *app) certRevokeCmd() *cobra.Command {
	var apply bool
	var reason string
	var w written
	revoke := &cobra.Command{
		Use: "revoke SERIAL", Short: "Revoke a certificate, for good", Args: cobra.ExactArgs(1),
		Example: "  postern cert revoke 5c0f...e1 --reason keyCompromise --apply",
		RunE: func(cmd *cobra.Command, args []string) error {
			serial, err := serialOf(args[0])
			if err != nil {
				return err
			}
			if !slices.Contains(operator.Reasons(), reason) {
				return misused("--reason "+strings.Join(operator.Reasons(), ", "), "no certificate is revoked here for %q: a hold could be taken back, and a list here only grows", reason)
			}
			if w.file != "" {
				return a.writeAct(cmd, w, acts.RevokeCertificate, acts.Parameters{Certificate: serial, Reason: reason})
			}
			if !apply {
				return a.wouldRevoke(cmd, serial, reason)
			}
			var done operator.RevokedCertificate
			if err := a.call(cmd.Context(), http.MethodDelete, "/api/v1/certificates/"+serial+"?reason="+url.QueryEscape(reason), nil, &done); err != nil {
				return err
			}
			return a.printRevokedCertificate(done)
		},
	}
	revoke.Flags().BoolVar(&apply, "apply", false, "do it")
	revoke.Flags().StringVar(&reason, "reason", "", "`why`: "+strings.Join(operator.Reasons(), ", "))
	w.flags(revoke)
	return revoke
}

// wouldRevoke shows whose certificate it is.
func (a *app) wouldRevoke(cmd *cobra.Command, serial, reason string) error {
	var c operator.Certificate
	if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/certificates/"+serial, nil, &c); err != nil {
		return err
	}
	return a.print(map[string]string{"would_revoke": serial, "reason": reason, "subject": c.Subject}, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "would revoke %s of %s for %s; nothing was changed: say --apply\n", serial, shown(c.Subject), reason)
	})
}

func (a *app) printRevokedCertificate(done operator.RevokedCertificate) error {
	return a.print(done, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s is revoked since %s for %s\n", done.Serial, done.At.Format(time.RFC3339), done.Reason)
	})
}

func (a *app) crlCmd() *cobra.Command {
	c := &cobra.Command{Use: "crl", Short: "Write lists of revoked certificates, and OCSP answers"}
	var dir string
	var noOCSP bool
	publish := &cobra.Command{
		Use: "publish", Short: "Write what a plain web server elsewhere hands out: CRLs, CA certificates, OCSP answers", Args: cobra.NoArgs,
		Example: "  postern crl publish --dir /srv/pki",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return misused("--dir DIR", "it has to be said where to")
			}
			var all operator.Publication
			if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/publication", nil, &all); err != nil {
				return err
			}
			if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a web server reads it
				return failed("may you write there?", "%w", err)
			}
			root, err := os.OpenRoot(dir)
			if err != nil {
				return failed("", "%w", err)
			}
			defer func() { _ = root.Close() }()
			done := published{Dir: dir, root: root}
			for _, name := range all.Issuers {
				if err := a.publish(cmd, &done, name, noOCSP); err != nil {
					return err
				}
			}
			return a.print(done, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "%d lists and %d OCSP answers are in %s; %d that had ended were removed\n", done.CRLs, done.Answers, dir, done.Removed)
			})
		},
	}
	publish.Flags().StringVar(&dir, "dir", "", "`folder` to write to")
	publish.Flags().BoolVar(&noOCSP, "no-ocsp", false, "no OCSP answers")
	c.AddCommand(publish)
	return c
}

// published is what was written.
type published struct {
	Dir     string `json:"dir"`
	CRLs    int    `json:"crls"`
	Answers int    `json:"ocsp"`
	Removed int    `json:"removed"`

	root *os.Root // of Dir: what lies in it leads nowhere else
}

func (a *app) publish(cmd *cobra.Command, done *published, name string, noOCSP bool) error {
	answers := filepath.Join("ocsp", name)
	for after, first := "", true; first || after != ""; first = false {
		var p operator.Publication
		q := url.Values{"issuer": {name}, "after": {after}}
		if err := a.call(cmd.Context(), http.MethodGet, "/api/v1/publication?"+q.Encode(), nil, &p); err != nil {
			return err
		}
		if first {
			err := errors.Join(done.put(filepath.Join("crl", name+".crl"), p.CRL), done.put(filepath.Join("ca", name+".cer"), p.CA))
			if err != nil {
				return failed("may you write into that folder?", "%w", err)
			}
			done.CRLs++
		}
		if noOCSP {
			return nil
		}
		for _, one := range p.Answers {
			// As a server finds it whose URL was unescaped: base64 has slashes, which
			// become folders, and two of them one.
			path := filepath.Join(answers, filepath.FromSlash(base64.StdEncoding.EncodeToString(one.Request)))
			if err := done.put(path, one.Response); err != nil {
				return failed("may you write into that folder?", "%w", err)
			}
			done.Answers++
		}
		after = p.After
	}
	return done.prune(answers, time.Now())
}

// put writes a file that others may read, whole or not at all.
func (p *published) put(path string, data []byte) error {
	if err := p.root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	fresh := filepath.Join(filepath.Dir(path), ".new-"+rand.Text())
	f, err := p.root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = p.root.Rename(fresh, path)
	}
	if err != nil {
		return errors.Join(err, p.root.Remove(fresh))
	}
	return nil
}

// prune removes the answers that have ended, and no other file.
func (p *published) prune(dir string, now time.Time) error {
	return fs.WalkDir(p.root.FS(), filepath.ToSlash(dir), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := p.root.ReadFile(path)
		if err != nil {
			return err
		}
		if r, err := ocsp.ParseResponse(data, nil); err != nil || now.Before(r.NextUpdate) {
			return nil
		}
		p.Removed++
		return p.root.Remove(path)
	})
}
