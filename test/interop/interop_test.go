package interop

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/pkcs7"
	"github.com/smallstep/scep"

	"github.com/postern-pki/postern/protocol/scep/client"
	"github.com/postern-pki/postern/test/site"
)

var testSite *site.Site

func TestMain(m *testing.M) {
	// The library signs its requests with SHA-1, which a profile has to allow by
	// name.
	old := strings.Replace(site.Profiles[strings.Index(site.Profiles, "  - name: interop"):], "name: interop", "name: old-clients", 1)
	old = strings.Replace(old, "AES-256-CBC]}", "AES-256-CBC], legacy: {sha1: true}}", 1)
	os.Exit(site.Main(context.Background(), site.Profiles+old, func(s *site.Site) int { testSite = s; return m.Run() }))
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func target(t testing.TB) string { return must[string](t)(testSite.URL(t.Context(), "interop")) }

func challenge(t testing.TB, profile, cn string) string {
	t.Helper()
	return must[site.Challenge](t)(testSite.NewChallenge(t.Context(), profile, "CN="+cn)).Challenge
}

// strongSwan runs a script that has pki.
func strongSwan(t *testing.T, dir, url, script string) (string, error) {
	t.Helper()
	out, _, err := testSite.StrongSwan(t.Context(), dir, url, "", script)
	return out, err
}

const fetchCA = `
pki --scepca --url "$URL" --caout ca.pem --raout ra.pem --outform pem
for f in ra*.pem; do
  case $(openssl x509 -in $f -noout -ext keyUsage) in *"Key Encipherment"*) cp $f enc.pem;; *) cp $f sig.pem;; esac
done
pki --gen --type rsa --size 2048 --outform pem > key.pem
`

const scepCmd = `pki --scep --url "$URL" --in key.pem --cacert-enc enc.pem --cacert-sig sig.pem --cacert ca.pem --cipher aes --digest sha256 --outform pem `

func serial(t testing.TB, file string) string {
	t.Helper()
	out, errOut, code := site.Run(t.Context(), nil, "openssl", "x509", "-in", file, "-noout", "-serial")
	if code != 0 {
		t.Fatalf("openssl: %s", errOut)
	}
	return strings.TrimSpace(out)
}

// Covers: S-028, S-148
func TestStrongSwan(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	run := func(script string) {
		t.Helper()
		if out, err := strongSwan(t, dir, target(t), script); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	enroll := scepCmd + `--dn "CN=swan.demo.example" --password ` + challenge(t, "interop", "swan.demo.example")
	run(fetchCA + enroll + " > cert.pem")
	run(enroll + " > again.pem") // its answer was lost: a fresh self-signed signer, all else the same
	if a, b := serial(t, file("cert.pem")), serial(t, file("again.pem")); a != b {
		t.Errorf("the same request got %s, then %s", a, b)
	}
	run("cp key.pem old.pem\n" + `pki --gen --type rsa --size 2048 --outform pem > key.pem` + "\n" +
		scepCmd + `--dn "CN=swan.demo.example" --cert cert.pem --key old.pem > renewed.pem`)
	if a, b := serial(t, file("cert.pem")), serial(t, file("renewed.pem")); a == b {
		t.Error("the renewal is the old certificate")
	}
	if out, errOut, code := site.Run(t.Context(), nil, "openssl", "verify", "-CAfile", testSite.CA(), file("renewed.pem")); code != 0 {
		t.Errorf("openssl verify: %s%s", out, errOut)
	}
	out, err := strongSwan(t, dir, target(t), `pki --gen --type rsa --size 2048 --outform pem > key.pem`+"\n"+scepCmd+`--dn "CN=swan2.demo.example" --password wrong`)
	if err == nil {
		t.Errorf("a wrong challenge was taken: %s", out)
	}
}

// A client that cannot do TLS is served through a proxy on its own segment.
func TestAClientWithoutTLS(t *testing.T) {
	up := must[*url.URL](t)(url.Parse(target(t)))
	h := must[*http.Client](t)(testSite.HTTP())
	proxy := httptest.NewServer(&httputil.ReverseProxy{Transport: h.Transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "https", Host: up.Host})
	}})
	defer proxy.Close()
	out, err := strongSwan(t, t.TempDir(), proxy.URL+up.Path, fetchCA+scepCmd+`--dn "CN=plain.demo.example" --password `+challenge(t, "interop", "plain.demo.example")+" > cert.pem")
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// library is what micromdm's scepclient does, on its library.
type library struct {
	t       testing.TB
	profile string
	url     string
	h       *http.Client
	ca      []*x509.Certificate
}

func newLibrary(t testing.TB, profile string) *library {
	l := &library{t: t, profile: profile, url: must[string](t)(testSite.URL(t.Context(), profile)), h: must[*http.Client](t)(testSite.HTTP())}
	l.ca = must[[]*x509.Certificate](t)(scep.CACerts(l.get("GetCACert")))
	if caps := string(l.get("GetCACaps")); !strings.Contains(caps, "AES") || !strings.Contains(caps, "Renewal") {
		t.Fatalf("capabilities: %q", caps)
	}
	return l
}

func (l *library) get(operation string) []byte {
	l.t.Helper()
	resp := must[*http.Response](l.t)(l.h.Get(l.url + "?operation=" + operation))
	defer func() { _ = resp.Body.Close() }()
	return must[[]byte](l.t)(io.ReadAll(resp.Body))
}

// ask sends one request and returns the answer, opened if it is a success.
func (l *library) ask(kind scep.MessageType, signer *x509.Certificate, key *rsa.PrivateKey, csr *x509.CertificateRequest, o ...scep.Option) *scep.PKIMessage {
	l.t.Helper()
	m := must[*scep.PKIMessage](l.t)(scep.NewCSRRequest(csr, &scep.PKIMessage{
		MessageType: kind, Recipients: l.ca, SignerKey: key, SignerCert: signer,
	}, o...))
	resp := must[*http.Response](l.t)(l.h.Post(l.url+"?operation=PKIOperation", "application/octet-stream", bytes.NewReader(m.Raw)))
	defer func() { _ = resp.Body.Close() }()
	body := must[[]byte](l.t)(io.ReadAll(resp.Body))
	if resp.StatusCode != http.StatusOK {
		l.t.Fatalf("status %s: %s", resp.Status, body)
	}
	rep := must[*scep.PKIMessage](l.t)(scep.ParsePKIMessage(body, scep.WithCACerts(l.ca)))
	if rep.PKIStatus == scep.SUCCESS {
		if err := rep.DecryptPKIEnvelope(signer, key); err != nil {
			l.t.Fatal(err)
		}
	}
	return rep
}

func (l *library) request(cn string) (*rsa.PrivateKey, *x509.Certificate, *x509.CertificateRequest) {
	l.t.Helper()
	key := must[*rsa.PrivateKey](l.t)(rsa.GenerateKey(rand.Reader, 2048))
	name := pkix.Name{CommonName: cn}
	csr := must[*x509.CertificateRequest](l.t)(x509.ParseCertificateRequest(must[[]byte](l.t)(
		client.NewCSR(key, client.CSR{Subject: name, Challenge: []byte(challenge(l.t, l.profile, cn))}))))
	template := &x509.Certificate{SerialNumber: csr.PublicKey.(*rsa.PublicKey).N, Subject: name, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	template.SerialNumber = template.SerialNumber.SetBytes(template.SerialNumber.Bytes()[:8])
	self := must[*x509.Certificate](l.t)(x509.ParseCertificate(must[[]byte](l.t)(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))))
	return key, self, csr
}

// Covers: S-082, S-083, S-112, S-113
func TestTheLibraryOfAnotherServer(t *testing.T) {
	l := newLibrary(t, "interop")
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmAES128CBC
	defer func() { pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmDESCBC }()
	key, self, csr := l.request("lib.demo.example")
	if rep := l.ask(scep.PKCSReq, self, key, csr, scep.WithCertsSelector(scep.EnciphermentCertsSelector())); rep.FailInfo != scep.BadAlg {
		t.Errorf("SHA-1 where it is not allowed: status %s, failInfo %s, want badAlg", rep.PKIStatus, rep.FailInfo)
	}
	l = newLibrary(t, "old-clients")
	key, self, csr = l.request("lib.demo.example")
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmDESCBC
	// The library's default is single DES, in a variable of the package.
	if rep := l.ask(scep.PKCSReq, self, key, csr, scep.WithCertsSelector(scep.EnciphermentCertsSelector())); rep.PKIStatus != scep.FAILURE || rep.FailInfo != scep.BadAlg {
		t.Errorf("single DES: status %s, failInfo %s, want badAlg", rep.PKIStatus, rep.FailInfo)
	}
	pkcs7.ContentEncryptionAlgorithm = pkcs7.EncryptionAlgorithmAES128CBC
	rep := l.ask(scep.PKCSReq, self, key, csr, scep.WithCertsSelector(scep.EnciphermentCertsSelector()))
	if rep.PKIStatus != scep.SUCCESS {
		t.Fatalf("status %s, failInfo %s", rep.PKIStatus, rep.FailInfo)
	}
	first := rep.Certificate
	// It renews with the same key, CSR and challenge.
	rep = l.ask(scep.RenewalReq, first, key, csr, scep.WithCertsSelector(scep.EnciphermentCertsSelector()))
	if rep.PKIStatus != scep.SUCCESS || rep.Certificate.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Fatalf("renewal: status %s, failInfo %s", rep.PKIStatus, rep.FailInfo)
	}
	// And without any challenge.
	second := rep.Certificate
	bare := must[*x509.CertificateRequest](t)(x509.ParseCertificateRequest(must[[]byte](t)(client.NewCSR(key, client.CSR{Subject: pkix.Name{CommonName: "lib.demo.example"}}))))
	rep = l.ask(scep.RenewalReq, second, key, bare, scep.WithCertsSelector(scep.EnciphermentCertsSelector()))
	if rep.PKIStatus != scep.SUCCESS || rep.Certificate.SerialNumber.Cmp(second.SerialNumber) == 0 {
		t.Errorf("renewal without a challenge: status %s, failInfo %s", rep.PKIStatus, rep.FailInfo)
	}
	key, self, csr = l.request("lib-all.demo.example")
	everyRSA := scep.CertsSelectorFunc(func(all []*x509.Certificate) (out []*x509.Certificate) {
		for _, c := range all { // it cannot encrypt to the CA, whose key is on a curve
			if c.PublicKeyAlgorithm == x509.RSA {
				out = append(out, c)
			}
		}
		return out
	})
	if rep := l.ask(scep.PKCSReq, self, key, csr, scep.WithCertsSelector(everyRSA)); rep.PKIStatus != scep.SUCCESS {
		t.Errorf("an envelope for every certificate: status %s, failInfo %s", rep.PKIStatus, rep.FailInfo)
	}
}

// Covers: S-033, S-039b
func TestOpenSSLReadsTheCertificatesInOrder(t *testing.T) {
	l := newLibrary(t, "interop")
	out, errOut, code := site.Run(t.Context(), l.get("GetCACert"), "openssl", "pkcs7", "-inform", "DER", "-print_certs", "-noout")
	sign, decrypt, ca := strings.Index(out, "RA Signing"), strings.Index(out, "RA Encryption"), strings.Index(out, "subject=O = Example Corp, CN = Postern Demo Device CA")
	if code != 0 || sign < 0 || sign > decrypt || decrypt > ca {
		t.Errorf("openssl: %s%s", out, errOut)
	}
}

// Covers: S-017, S-018
func TestListeners(t *testing.T) {
	operators := "https://127.0.0.1:" + operatorPort(t) + "/api/v1/status"
	plain := must[*http.Client](t)(testSite.HTTP())
	if resp, err := plain.Get(operators); err == nil {
		_ = resp.Body.Close()
		t.Errorf("the operators' listener answered a stranger: %s", resp.Status)
	}
	cert := must[tls.Certificate](t)(tls.LoadX509KeyPair(testSite.Path("ceremony", "operator.pem"), testSite.Path("ceremony", "operator.key")))
	resp := must[*http.Response](t)(must[*http.Client](t)(testSite.HTTP(cert)).Get(operators))
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("an operator gets %s", resp.Status)
	}
	asked := false
	u := must[*url.URL](t)(url.Parse(target(t)))
	config := must[*tls.Config](t)(testSite.TLS())
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		return &tls.Certificate{}, nil
	}
	conn := must[*tls.Conn](t)(tls.Dial("tcp", u.Host, config))
	_ = conn.Close()
	if asked {
		t.Error("the devices' listener asks for a client certificate")
	}
	raw := must[net.Conn](t)(net.Dial("tcp", u.Host))
	defer func() { _ = raw.Close() }()
	_, _ = io.WriteString(raw, "GET "+u.Path+"?operation=GetCACaps HTTP/1.0\r\n\r\n")
	_ = raw.SetReadDeadline(time.Now().Add(10 * time.Second))
	if answer, _ := io.ReadAll(raw); bytes.Contains(answer, []byte("POSTPKIOperation")) {
		t.Error("plain HTTP was served")
	}
}

// operatorPort is that of the listener, which the site let the kernel choose.
func operatorPort(t testing.TB) string {
	t.Helper()
	out, _, code := site.Run(t.Context(), nil, "grep", "-o", `"operators":"[^"]*"`, testSite.Journal())
	_, addr, ok := strings.Cut(strings.TrimSpace(strings.Split(out, "\n")[0]), `"operators":"`)
	if _, port, err := net.SplitHostPort(strings.TrimSuffix(addr, `"`)); code == 0 && ok && err == nil {
		return port
	}
	t.Fatalf("the service does not say where its operators' listener is: %q", out)
	return ""
}
