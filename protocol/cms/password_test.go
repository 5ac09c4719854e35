package cms_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
)

func envelopPassword(t testing.TB, content, password []byte, c cms.Cipher) []byte {
	t.Helper()
	der, err := cms.EnvelopPassword(rand.Reader, content, password, c)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parseEnvelope(t testing.TB, ber []byte) *cms.Envelope {
	t.Helper()
	der, err := cms.DER(ber, cms.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	e, err := cms.ParseEnvelope(der)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// byPassword opens the one PasswordRecipientInfo of an envelope.
func byPassword(t testing.TB, e *cms.Envelope, password []byte) ([]byte, error) {
	t.Helper()
	if len(e.Passwords) != 1 || len(e.Recipients) != 0 {
		t.Fatalf("%d passwords, %d other recipients", len(e.Passwords), len(e.Recipients))
	}
	key, err := e.Passwords[0].Key(password, e.Cipher.KeySize())
	if err != nil {
		return nil, err
	}
	return e.Open(key)
}

// An envelope under a password opens with that password alone, also by OpenSSL.
// Covers: S-171
func TestPasswordRecipient(t *testing.T) {
	secret, dir := []byte("7ZKQ-0123-abcd-é"), t.TempDir()
	for _, c := range allCiphers {
		der := envelopPassword(t, content, secret, c)
		if got, err := byPassword(t, parseEnvelope(t, der), secret); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%v: %q, %v", c, got, err)
		}
		for _, wrong := range []string{"", "7ZKQ-0123-abcd-e", "x"} {
			// One in 2^24 passes the check of three octets; then the content is garbled.
			if got, err := byPassword(t, parseEnvelope(t, der), []byte(wrong)); !errors.Is(err, cms.ErrOpen) {
				t.Errorf("%v: the password %q gives %q, %v", c, wrong, got, err)
			}
		}
		if c == cms.DES3CBC {
			continue
		}
		out := openssl(t, dir, der, "cms", "-decrypt", "-binary", "-inform", "DER", "-pwri_password", string(secret))
		if !bytes.Equal(out, content) {
			t.Errorf("%v: openssl read %q", c, out)
		}
	}
	if _, err := cms.EnvelopPassword(rand.Reader, content, nil, cms.AES128CBC); !errors.Is(err, cms.ErrAlgorithm) {
		t.Errorf("without a password: %v", err)
	}
	if _, err := cms.EnvelopPassword(rand.Reader, content, secret, cms.DESCBC); !errors.Is(err, cms.ErrAlgorithm) {
		t.Errorf("by single DES: %v", err)
	}
	if bytes.Equal(envelopPassword(t, content, secret, cms.AES128CBC), envelopPassword(t, content, secret, cms.AES128CBC)) {
		t.Error("the same envelope twice")
	}
}

// Covers: S-171
func TestWeOpenOpenSSLsPasswordRecipients(t *testing.T) {
	dir := t.TempDir()
	for cipher, want := range map[string]cms.Cipher{"-aes128": cms.AES128CBC, "-aes192": cms.AES192CBC, "-aes256": cms.AES256CBC, "-des3": cms.DES3CBC} {
		for _, extra := range []string{"-binary", "-stream"} {
			e := parseEnvelope(t, openssl(t, dir, content, "cms", "-encrypt", "-binary", "-outform", "DER", cipher, extra, "-pwri_password", "secret"))
			if got, err := byPassword(t, e, []byte("secret")); err != nil || e.Cipher != want || !bytes.Equal(got, content) {
				t.Errorf("%s %s: %q, %v", cipher, extra, got, err)
			}
		}
	}
}

// A PasswordRecipientInfo that asks for too much, or for what is not known, is as
// one that is not there.
func TestPasswordRecipientBounds(t *testing.T) {
	der := envelopPassword(t, content, []byte("secret"), cms.AES256CBC)
	info := []int{1, 0, 1, 0}
	for name, change := range map[string]func(p *tlv){
		"a million and one iterations": func(p *tlv) { p.at(1, 1, 1).value = []byte{0x0f, 0x42, 0x41} },
		"no iterations":                func(p *tlv) { p.at(1, 1, 1).value = []byte{0} },
		"negative iterations":          func(p *tlv) { p.at(1, 1, 1).value = []byte{0x80} },
		"no salt":                      func(p *tlv) { p.at(1, 1, 0).value = nil },
		"a salt of 65 octets":          func(p *tlv) { p.at(1, 1, 0).value = make([]byte, 65) },
		"another derivation":           func(p *tlv) { p.at(1, 0).value[8] = 13 },
		"another PRF":                  func(p *tlv) { p.at(1, 1, 2, 0).value[7] = 99 },
		"another key wrap":             func(p *tlv) { p.at(2, 0).value[10] = 99 },
		"another cipher":               func(p *tlv) { p.at(2, 1, 0).value[8] = 99 },
		"another version":              func(p *tlv) { p.at(0).value = []byte{1} },
		"an IV too short":              func(p *tlv) { p.at(2, 1, 1).value = make([]byte, 15) },
		"one block":                    func(p *tlv) { p.at(3).value = make([]byte, 16) },
		"no whole blocks":              func(p *tlv) { p.at(3).value = make([]byte, 47) },
		"nine blocks":                  func(p *tlv) { p.at(3).value = make([]byte, 144) },
		"something after it":           func(p *tlv) { p.add(null) },
	} {
		m := parseTLV(t, der)
		change(m.at(info...))
		if e := parseEnvelope(t, m.der()); len(e.Passwords) != 0 {
			t.Errorf("%s: is taken", name)
		}
	}
	for name, change := range map[string]func(p *tlv){
		"nothing": func(*tlv) {},
		"the key's length": func(p *tlv) {
			d := p.at(1, 1)
			d.kids = append(d.kids[:2:2], &tlv{tag: 2, value: []byte{16}}, d.kids[2])
		},
		"HMAC with SHA-1":    func(p *tlv) { p.at(1, 1, 2, 0).value[7] = 7 },
		"no PRF":             func(p *tlv) { d := p.at(1, 1); d.kids = d.kids[:2] },
		"a million to count": func(p *tlv) { p.at(1, 1, 1).value = []byte{0x0f, 0x42, 0x40} },
	} {
		m := parseTLV(t, der)
		change(m.at(info...))
		if e := parseEnvelope(t, m.der()); len(e.Passwords) != 1 {
			t.Errorf("%s: is not taken", name)
		}
	}
}

// The parameters of OAEP as OpenSSL writes them, and what else stands there.
// Covers: S-085
func TestOAEPParameters(t *testing.T) {
	h, dir := rsaHolder(t), t.TempDir()
	h.write(t, dir, "h")
	made := func(options ...string) *tlv {
		args := append([]string{"cms", "-encrypt", "-binary", "-outform", "DER", "-aes128", "-recip", "h.pem", "-keyopt", "rsa_padding_mode:oaep"}, options...)
		return parseTLV(t, openssl(t, dir, content, args...))
	}
	for _, tt := range []struct {
		options   []string
		hash, mgf crypto.Hash
	}{
		{nil, crypto.SHA1, crypto.SHA1},
		{[]string{"-keyopt", "rsa_oaep_md:sha256"}, crypto.SHA256, crypto.SHA256},
		{[]string{"-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha1"}, crypto.SHA256, crypto.SHA1},
		{[]string{"-keyopt", "rsa_mgf1_md:sha256"}, crypto.SHA1, crypto.SHA256},
		{[]string{"-keyopt", "rsa_oaep_md:sha512"}, 0, 0},
		{[]string{"-keyopt", "rsa_oaep_label:00"}, 0, 0},
	} {
		r := parseEnvelope(t, made(tt.options...).der()).Recipients
		if len(r) != 1 || !r[0].Algorithm.Equal(cms.OIDRSAESOAEP) || r[0].OAEPHash != tt.hash || r[0].OAEPMGF != tt.mgf {
			t.Errorf("%v: %+v", tt.options, r)
		}
	}
	for name, change := range map[string]func(p *tlv){
		"something after them":      func(p *tlv) { p.add(null) },
		"another mask":              func(p *tlv) { p.at(1, 0, 0).value[8] = 9 },
		"another hash":              func(p *tlv) { p.at(0, 0, 0).value[8] = 99 },
		"something after the hash":  func(p *tlv) { p.at(0).add(null) },
		"something beside the hash": func(p *tlv) { p.at(0, 0).add(null, null) },
		"no sequence":               func(p *tlv) { *p = tlv{tag: 4} },
	} {
		m := made("-keyopt", "rsa_oaep_md:sha256")
		change(m.at(1, 0, 1, 0, 2, 1))
		if r := parseEnvelope(t, m.der()).Recipients; len(r) != 1 || r[0].OAEPHash != 0 || r[0].OAEPMGF != 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
}
