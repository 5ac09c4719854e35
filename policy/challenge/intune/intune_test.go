package intune_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern-pki/postern/policy/challenge"
	"github.com/postern-pki/postern/policy/challenge/intune"
	"github.com/postern-pki/postern/protocol/scep/client"
	fake "github.com/postern-pki/postern/test/intune"
)

var key = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

const shown = "an encrypted blob with - _ + / =, which only Intune reads"

func question(t *testing.T, cn, shown string) challenge.Question {
	t.Helper()
	csr, err := client.NewCSR(key(), client.CSR{Subject: pkix.Name{CommonName: cn}, Challenge: []byte(shown)})
	if err != nil {
		t.Fatal(err)
	}
	return challenge.Question{Occasion: challenge.OccasionCheck, Validator: "corp", Profile: "wifi", Transaction: "tx/1", Request: "r1", Challenge: []byte(shown), CSR: csr}
}

func tenant(t *testing.T) *fake.Server {
	t.Helper()
	s := fake.New(t.Errorf)
	t.Cleanup(s.Close)
	s.Knows(shown, "a.corp.example")
	return s
}

func options(s *fake.Server) intune.Options {
	return intune.Options{
		Tenant: fake.Tenant, App: fake.App, Secret: challenge.NewCredential([]byte(fake.Secret)), Caller: "Postern/1.0", Login: s.URL, Graph: s.URL + "/",
		Timeout: 5 * time.Second, HTTP: s.Client().Transport,
	}
}

func open(t *testing.T, o intune.Options) *intune.Client {
	t.Helper()
	c, err := intune.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A request is validated, and what became of it is told, with the same octets.
func TestTheLifeOfARequest(t *testing.T) {
	s := tenant(t)
	c, q := open(t, options(s)), question(t, "a.corp.example", shown)
	if a := c.Ask(t.Context(), q); a != (challenge.Answer{Verdict: challenge.Allowed}) {
		t.Fatalf("%+v", a)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(0x0abc), Subject: pkix.Name{CommonName: "a"}, NotAfter: time.Date(2027, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key().Public(), key())
	if err != nil {
		t.Fatal(err)
	}
	q.Occasion, q.Certificate, q.Issuer = challenge.OccasionIssued, der, "CN=Corp CA"
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Allowed {
		t.Fatalf("%+v", a)
	}
	q.Occasion, q.Why = challenge.OccasionFailed, strings.Repeat("why ", 100)
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Allowed {
		t.Fatalf("%+v", a)
	}
	for _, action := range []string{"validateRequest", "successNotification", "failureNotification"} {
		calls := s.Calls(action)
		if len(calls) != 1 || !bytes.Equal(calls[0].CSR, q.CSR) || calls[0].Transaction != "tx/1" || calls[0].Fields["callerInfo"] != "Postern/1.0" {
			t.Errorf("%s: %v", action, calls)
		}
	}
	f := s.Calls("successNotification")[0].Fields
	if f["certificateSerialNumber"] != "0ABC" || f["certificateExpirationDateUtc"] != "2027-01-02T02:04:05.000Z" || f["issuingCertificateAuthority"] != "CN=Corp CA" || f["caConfiguration"] != "wifi" {
		t.Errorf("%v", f)
	}
	if n, d := s.Count("token"), s.Count("directory"); n != 2 || d != 1 {
		t.Errorf("%d tokens and %d looks into the directory for three calls", n, d)
	}
}

// Each code that Intune has refuses, and says something else.
func TestEveryCodeIsARefusalWithAReason(t *testing.T) {
	s := tenant(t)
	c, q, seen := open(t, options(s)), question(t, "a.corp.example", shown), map[string]string{}
	for _, code := range strings.Fields(`Unknown CertificateRequestDecodingFailed ChallengePasswordMissing ChallengeDeserializationError ChallengeDecryptionError
		ChallengeDecodingError ChallengeInvalidTimestamp ChallengeExpired SubjectNameMissing SubjectNameMismatch SubjectAltNameMissing SubjectAltNameMismatch
		KeyUsageMismatch KeyLengthMismatch EnhancedKeyUsageMissing EnhancedKeyUsageMismatch AadKeyIdentifierListMissing RegisteredKeyMismatch
		SigningCertThumbprintMismatch ScepProfileNoLongerTargetedToTheClient SignatureValidationFailed BadCertificateRequestIdInChallenge
		BadDeviceIdInChallenge BadUserIdInChallenge AWordOfTomorrow success SUCCESS`) {
		s.Say("validateRequest", code)
		a := c.Ask(t.Context(), q)
		if a.Verdict != challenge.Refused || a.Code != code || len(a.Say) < 20 {
			t.Errorf("%s: %+v", code, a)
		}
		if other, ok := seen[a.Say]; ok && !strings.HasPrefix(a.Say, "a code that is new") {
			t.Errorf("%s and %s are told the same", code, other)
		}
		seen[a.Say] = code
	}
	s.Say("validateRequest", "")
	if a := c.Ask(t.Context(), question(t, "b.corp.example", shown)); a.Code != "SubjectNameMismatch" {
		t.Errorf("another name: %+v", a)
	}
	q.Bare = true
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Refused {
		t.Errorf("without its challenge: %+v", a)
	}
}

// What was kept is asked for anew after a failure: an old token, a service that moved.
func TestWhatIsKeptIsDroppedAfterAFailure(t *testing.T) {
	s := tenant(t)
	c, q := open(t, options(s)), question(t, "a.corp.example", shown)
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Allowed {
		t.Fatalf("%+v", a)
	}
	s.Expire()
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Allowed || s.Count("directory") != 2 {
		t.Errorf("with tokens that are worth nothing: %+v, %d", a, s.Count("directory"))
	}
	s.Down("validateRequest", true)
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Unreadable || !strings.Contains(a.Say, "status 503") {
		t.Errorf("down: %+v", a)
	}
	s.Down("validateRequest", false)
	before := s.Count("directory")
	if a := c.Ask(t.Context(), q); a.Verdict != challenge.Allowed || s.Count("directory") != before+1 {
		t.Errorf("up again: %+v", a)
	}
}

// A token is not used to its last minute.
func TestATokenIsRenewedEarly(t *testing.T) {
	s := tenant(t)
	o, now := options(s), time.Now()
	o.Now = func() time.Time { return now }
	c, q := open(t, o), question(t, "a.corp.example", shown)
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{{0, 2}, {54 * time.Minute, 2}, {56 * time.Minute, 3}} {
		now = now.Add(tt.after)
		if a := c.Ask(t.Context(), q); a.Verdict != challenge.Allowed || s.Count("token") != tt.want {
			t.Errorf("after %s: %+v, %d tokens", tt.after, a, s.Count("token"))
		}
		now = now.Add(-tt.after)
	}
}

// Nobody there, no token, no service: each is a fault and no word about the request.
func TestNoAnswer(t *testing.T) {
	s, q := tenant(t), question(t, "a.corp.example", shown)
	wrong := options(s)
	wrong.Secret = challenge.NewCredential([]byte("wrong"))
	empty := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			_, _ = w.Write([]byte(`{"token_type":"Bearer","expires_in":3600,"access_token":"t"}`))
			return
		}
		_, _ = w.Write([]byte(`{"value":[]}`))
	}))
	t.Cleanup(empty.Close)
	nothing := options(s)
	nothing.Login, nothing.Graph, nothing.HTTP = empty.URL, empty.URL, empty.Client().Transport
	gone := options(s)
	gone.Login = "https://127.0.0.1:1"
	slow := options(s)
	slow.Timeout = time.Nanosecond
	for name, tt := range map[string]struct {
		o    intune.Options
		want challenge.Verdict
		say  string
	}{
		"a wrong secret":  {wrong, challenge.Unreadable, "status 401"},
		"no such service": {nothing, challenge.Unreadable, "lists no ScepRequestValidationFEService"},
		"nobody there":    {gone, challenge.Unreachable, "127.0.0.1:1"},
		"no time":         {slow, challenge.TimedOut, "no answer within"},
	} {
		if a := open(t, tt.o).Ask(t.Context(), q); a.Verdict != tt.want || !strings.Contains(a.Say, tt.say) {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// An application with a certificate signs for itself (RFC 7523).
func TestACertificateCredential(t *testing.T) {
	s := tenant(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key().Public(), key())
	if err != nil {
		t.Fatal(err)
	}
	s.Assert = func(text string) error {
		parts := strings.Split(text, ".")
		if len(parts) != 3 {
			return errors.New("three parts are wanted")
		}
		decode := func(p string) []byte { b, _ := base64.RawURLEncoding.DecodeString(p); return b }
		digest, thumb := sha256.Sum256([]byte(parts[0]+"."+parts[1])), sha256.Sum256(der)
		if err := rsa.VerifyPSS(&key().PublicKey, crypto.SHA256, digest[:], decode(parts[2]), nil); err != nil {
			return err
		}
		var head, claims map[string]any
		_, _ = json.Unmarshal(decode(parts[0]), &head), json.Unmarshal(decode(parts[1]), &claims)
		if head["alg"] != "PS256" || head["typ"] != "JWT" || head["x5t#S256"] != base64.RawURLEncoding.EncodeToString(thumb[:]) {
			return fmt.Errorf("the head %v", head)
		}
		life := claims["exp"].(float64) - claims["nbf"].(float64)
		if claims["iss"] != fake.App || claims["sub"] != fake.App || claims["aud"] != s.URL+"/"+fake.Tenant+"/oauth2/v2.0/token" || life <= 0 || life > 600 {
			return fmt.Errorf("the claims %v", claims)
		}
		return nil
	}
	o := options(s)
	o.Secret, o.Certificate = challenge.Credential{}, &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key()}
	if a := open(t, o).Ask(t.Context(), question(t, "a.corp.example", shown)); a.Verdict != challenge.Allowed {
		t.Errorf("%+v", a)
	}
}

// Revocations are fetched, and their results told.
func TestRevocations(t *testing.T) {
	s := tenant(t)
	c := open(t, options(s))
	s.Revoke(map[string]any{"requestContext": "ctx", "serialNumber": "0abc", "issuerName": "CN=Corp CA", "caConfiguration": "wifi"})
	got, err := c.Revocations(t.Context(), 10, "")
	if err != nil || len(got) != 1 || got[0] != (intune.Revocation{Context: "ctx", Serial: "0abc", Issuer: "CN=Corp CA", Config: "wifi"}) {
		t.Fatalf("%v, %v", got, err)
	}
	if err := c.Revoked(t.Context(), []intune.Result{{Context: "ctx", Succeeded: true, Code: "None"}}); err != nil {
		t.Error(err)
	}
	for _, n := range []int{0, 501} {
		if _, err := c.Revocations(t.Context(), n, ""); !errors.Is(err, intune.ErrOptions) {
			t.Errorf("%d at once: %v", n, err)
		}
	}
	if err := c.Revoked(t.Context(), nil); !errors.Is(err, intune.ErrOptions) {
		t.Error(err)
	}
}

func TestOptions(t *testing.T) {
	s := tenant(t)
	small, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*intune.Options){
		"plain HTTP":      func(o *intune.Options) { o.Login = "http://login.example" },
		"no tenant":       func(o *intune.Options) { o.Tenant = "" },
		"a path":          func(o *intune.Options) { o.Tenant = "a/b" },
		"no credential":   func(o *intune.Options) { o.Secret = challenge.Credential{} },
		"two credentials": func(o *intune.Options) { o.Certificate = &tls.Certificate{} },
		"an EC key": func(o *intune.Options) {
			o.Secret, o.Certificate = challenge.Credential{}, &tls.Certificate{Certificate: [][]byte{{1}}, PrivateKey: small}
		},
		"for ever": func(o *intune.Options) { o.Timeout = time.Hour },
	} {
		o := options(s)
		change(&o)
		if _, err := intune.New(o); !errors.Is(err, intune.ErrOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v", options(s), options(s), options(s)); strings.Contains(text, fake.Secret) {
		t.Error("the secret is printed")
	}
}

// FuzzReply has bodies as a service may send them: what is allowed says so.
func FuzzReply(f *testing.F) {
	for _, s := range []string{`{"code":"Success","errorDescription":""}`, `{"code":"ChallengeExpired"}`, `{"Code":"Success"}`, `{"code":null}`, `{}`, `[]`, `{"code":7}`} {
		f.Add([]byte(s))
	}
	for _, s := range []string{`{"Code":"Success"}`, `{"code":null}`, `{}`, `null`, `"Success"`, ``} {
		if a := intune.ParseReply([]byte(s)); a.Verdict != challenge.Unreadable {
			f.Errorf("%s: %+v", s, a)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		a := intune.ParseReply(body)
		if len(a.Code) > challenge.MaxCode || len(a.Say) > challenge.MaxSay || a.Verdict == challenge.Allowed && a.Code != "" {
			t.Errorf("%+v", a)
		}
	})
}
