package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// Of the measurement of what the world is told: certificates, connections, answers.
const (
	statusCerts   = 20
	statusClients = 8
	statusAnswers = 40_000
)

// measureStatus has the service tell what is revoked: how long that takes after a
// revocation, and how many answers from memory there are in a second, over TLS.
func measureStatus(ctx context.Context) error {
	tmp, err := os.MkdirTemp("", "postern-load-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	bin, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	s, _, err := site.Make(ctx, filepath.Join(tmp, "site"), site.Options{Bin: bin, Plan: "hsm/ceremony/scripts/demo.yaml", Profiles: profiles(), DevicePort: "0", OperatorPort: "0"})
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	defer func() { _ = s.Stop() }()
	certs, err := someCertificates(ctx, s, statusCerts)
	if err != nil {
		return err
	}
	base, err := s.URL(ctx, "interop")
	if err != nil {
		return err
	}
	u, err := url.Parse(base)
	if err != nil {
		return err
	}
	if err := answerRate(ctx, s, u.Host, certs[0]); err != nil {
		return err
	}
	return listDelay(ctx, s, "https://"+u.Host+"/crl/demo.crl", certs)
}

func someCertificates(ctx context.Context, s *site.Site, n int) ([]*x509.Certificate, error) {
	l, err := newLoad(ctx, s, 2, n)
	if err != nil {
		return nil, err
	}
	all := make([]*x509.Certificate, n)
	return all, parallel(2, n, func(i int) error {
		reply, err := l.device.Post(ctx, l.messages[i].DER)
		if err != nil {
			return err
		}
		r, err := client.Open(reply, l.messages[i].Expect)
		if err == nil {
			all[i] = r.Certificate
		}
		return err
	})
}

// answerRate asks about one certificate again and again, over connections that are kept.
// What asks is as little as it can be: it shares the machine.
func answerRate(ctx context.Context, s *site.Site, host string, cert *x509.Certificate) error {
	data, err := os.ReadFile(s.CA())
	if err != nil {
		return err
	}
	block, _ := pem.Decode(data)
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	question, err := ocsp.CreateRequest(cert, ca, &ocsp.RequestOptions{Hash: crypto.SHA1})
	if err != nil {
		return err
	}
	request := fmt.Appendf(nil, "POST /ocsp/demo HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", host, len(question), question)
	config, err := s.TLS()
	if err != nil {
		return err
	}
	conns := make(chan *asker, statusClients)
	for range statusClients {
		c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", host)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		conns <- &asker{c, bufio.NewReader(c)}
	}
	once := func(int) error {
		c := <-conns
		defer func() { conns <- c }()
		return c.ask(request, ca)
	}
	if err := parallel(statusClients, 100, once); err != nil { // and have it in memory
		return err
	}
	before, err := cpuOfAll(s)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := parallel(statusClients, statusAnswers, once); err != nil {
		return err
	}
	wall := time.Since(began).Seconds()
	after, err := cpuOfAll(s)
	if err != nil {
		return err
	}
	used := 0.0
	for name := range after {
		used += after[name] - before[name]
	}
	rate := statusAnswers / wall
	fmt.Printf("OCSP answers from memory: %.0f a second over %d connections, %.2f times the goal of 5,000; %.0f µs of the server's CPU each\n", rate, statusClients, rate/5000, used/statusAnswers*1e6)
	return nil
}

type asker struct {
	w io.Writer
	r *bufio.Reader
}

// ask looks at the first answer on each connection, and counts the others.
func (a *asker) ask(request []byte, ca *x509.Certificate) error {
	if _, err := a.w.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(a.r, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || len(body) < 200 {
		_, err := ocsp.ParseResponse(body, ca)
		return fmt.Errorf("an answer %s of %d octets: %w", resp.Status, len(body), err)
	}
	return nil
}

// listDelay revokes one certificate after another, and waits for the list.
func listDelay(ctx context.Context, s *site.Site, url string, certs []*x509.Certificate) error {
	h, err := s.HTTP()
	if err != nil {
		return err
	}
	var took []float64
	for _, c := range certs[:10] {
		time.Sleep(1100 * time.Millisecond) // lists are a second apart
		serial := hex.EncodeToString(c.SerialNumber.Bytes())
		began := time.Now()
		if _, errOut, code := s.Postern(ctx, nil, "cert", "revoke", serial, "--reason", "superseded", "--apply"); code != 0 {
			return fmt.Errorf("postern cert revoke: %s", errOut)
		}
		for listed := false; !listed; time.Sleep(2 * time.Millisecond) {
			if listed, err = names(ctx, h, url, c); err != nil {
				return err
			}
		}
		took = append(took, time.Since(began).Seconds())
	}
	slices.Sort(took)
	fmt.Printf("from the command that revokes to the list that names the certificate: p50 %.0f ms, most %.0f ms, of the goal of 1 s %.2f\n", took[len(took)/2]*1e3, took[len(took)-1]*1e3, took[len(took)-1])
	return nil
}

func names(ctx context.Context, h *http.Client, url string, c *x509.Certificate) (bool, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, err
	}
	resp, err := h.Do(r)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	der, err := io.ReadAll(resp.Body)
	return bytes.Contains(der, c.SerialNumber.Bytes()), err
}
