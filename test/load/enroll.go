package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

// message is one request, made before anything is measured.
type message struct {
	der    []byte
	expect client.Expectations
}

// deviceKeys is how many keys the devices have together: making one for each
// would take longer than the measurement.
const deviceKeys = 32

// enrollMany sends n requests from so many clients, each over a connection that
// it keeps, and reads the server's CPU time around it.
func enrollMany(ctx context.Context, s *site.Site, clients, n int) (figure, error) {
	d, err := s.Device(ctx, "interop")
	if err != nil {
		return figure{}, err
	}
	messages, err := prepare(ctx, s, d, clients, n)
	if err != nil {
		return figure{}, err
	}
	if _, err := d.Caps(ctx); err != nil {
		return figure{}, err
	}
	took := make([]float64, n)
	before, err := cpuOf(s.PID())
	if err != nil {
		return figure{}, err
	}
	began := time.Now()
	err = parallel(clients, n, func(i int) error {
		start := time.Now()
		reply, err := post(ctx, d, messages[i].der)
		took[i] = time.Since(start).Seconds()
		if err != nil {
			return err
		}
		if i%50 == 0 { // opening each would measure the client
			_, err = client.Open(reply, messages[i].expect)
			return err
		}
		rep, err := client.Inspect(reply)
		if err == nil && rep.Status != scep.StatusSuccess {
			err = fmt.Errorf("request %d: pkiStatus %d", i, rep.Status)
		}
		return err
	})
	wall := time.Since(began).Seconds()
	if err != nil {
		return figure{}, err
	}
	after, err := cpuOf(s.PID())
	if err != nil {
		return figure{}, err
	}
	slices.Sort(took)
	return figure{cpu: (after - before) / float64(n), rate: float64(n) / wall, p50: took[n/2], p99: took[n*99/100]}, nil
}

// post sends a message alone: the client's Send asks for the capabilities first.
func post(ctx context.Context, d *client.Client, der []byte) (*client.Reply, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL+"?operation=PKIOperation", bytes.NewReader(der))
	if err != nil {
		return nil, err
	}
	resp, err := d.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return &client.Reply{DER: body}, err
}

func prepare(ctx context.Context, s *site.Site, d *client.Client, clients, n int) ([]message, error) {
	ca, err := d.CACert(ctx)
	if err != nil {
		return nil, err
	}
	subjects := make([]string, n)
	for i := range subjects {
		subjects[i] = fmt.Sprintf("CN=l-%d-%d.demo.example", clients, i)
	}
	challenges, err := s.Challenges(ctx, "interop", subjects...)
	if err != nil {
		return nil, err
	}
	keys := make([]*rsa.PrivateKey, deviceKeys)
	certs := make([][]byte, deviceKeys)
	for i := range keys {
		if keys[i], err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, err
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: "device"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
		if certs[i], err = x509.CreateCertificate(rand.Reader, template, template, &keys[i].PublicKey, keys[i]); err != nil {
			return nil, err
		}
	}
	out := make([]message, n)
	return out, parallel(2, n, func(i int) error {
		key := keys[i%deviceKeys]
		csr, err := client.NewCSR(key, client.CSR{Subject: pkix.Name{CommonName: strings.TrimPrefix(subjects[i], "CN=")}, Challenge: []byte(challenges[i].Challenge)})
		if err != nil {
			return err
		}
		spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			return err
		}
		nonce, err := client.Nonce(rand.Reader)
		if err != nil {
			return err
		}
		m := client.Message{
			Type: scep.PKCSReq, TransactionID: fmt.Sprintf("%d-%d", clients, i), SenderNonce: nonce, Signer: certs[i%deviceKeys], SignerKey: key,
			Recipient: ca.RADecrypt.Raw, CSR: csr, Cipher: cms.AES128CBC, Digest: crypto.SHA256,
		}
		out[i].der, err = client.BuildRequest(m)
		out[i].expect = client.Expectations{CA: ca, TransactionID: m.TransactionID, SenderNonce: nonce, Signer: m.Signer, SignerKey: key, PublicKey: spki}
		return err
	})
}

// ticksPerSecond is USER_HZ, which Linux fixed for what /proc says.
const ticksPerSecond = 100

// cpuOf is the CPU time of a process so far, in seconds.
func cpuOf(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	user, err1 := strconv.ParseUint(fields[11], 10, 64)
	system, err2 := strconv.ParseUint(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	return float64(user+system) / ticksPerSecond, nil
}

// peakMemory is the largest resident size that a process had, in bytes.
func peakMemory(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
}
