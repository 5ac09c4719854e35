package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/postern-pki/postern/test/site"
)

// scep runs our own client as a device would, with the challenge on standard
// input.
func (d *demo) scep(challenge string, args ...string) (stdout, stderr string, code int) {
	args = append([]string{"scep"}, args...)
	args = append(args, "--url", d.url, "--tls-ca", d.site.CA(), "--ca-fingerprint", d.fingerprint)
	return site.Run(d.ctx, []byte(challenge), filepath.Join(d.bin, "postern"), args...)
}

func (d *demo) challenge(subject string, more ...string) (string, error) {
	c, err := d.site.NewChallenge(d.ctx, "demo", subject, more...)
	if err != nil {
		return "", err
	}
	d.say("an operator creates challenge %s for %s; it is shown once and kept as an HMAC tag", c.ID, c.Subject)
	return c.Challenge, nil
}

func (d *demo) enroll() error {
	d.step("An enrollment: a one-time challenge, our client, a certificate")
	c, err := d.challenge("CN=printer-7.demo.example", "--san", "dns:printer-7.demo.example")
	if err != nil {
		return err
	}
	out, errOut, code := d.scep(c, "enroll", "--subject", "CN=printer-7.demo.example", "--san", "dns:printer-7.demo.example",
		"--challenge-file", "-", "--out", d.site.Path("printer-7"))
	if code != 0 {
		return fmt.Errorf("enrolling: exit %d: %s%s", code, out, errOut)
	}
	d.quote(out)
	return d.check(d.site.Path("printer-7", "cert.pem"))
}

// check has openssl say what the certificate is.
func (d *demo) check(cert string) error {
	out, errOut, code := site.Run(d.ctx, nil, "openssl", "verify", "-CAfile", d.site.CA(), "-purpose", "sslclient", cert)
	if code != 0 {
		return fmt.Errorf("openssl verify: %s%s", out, errOut)
	}
	d.say("openssl: %s", strings.TrimSpace(strings.Replace(out, cert, filepath.Base(filepath.Dir(cert))+"/"+filepath.Base(cert), 1)))
	return nil
}

// strongSwan enrolls with Debian's pki.
func (d *demo) strongSwan() error {
	d.step("The same by strongSwan's `pki --scep`, another implementation")
	c, err := d.challenge("CN=router-1.demo.example")
	if err != nil {
		return err
	}
	dir := d.site.Path("router-1")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	// The challenge goes in as a file of options: an argument is everybody's to read.
	out, proxied, err := d.site.StrongSwan(d.ctx, dir, d.url, fmt.Sprintf("--password %q\n", c), `
umask 077; cat > options
pki --scepca --url "$URL" --caout ca.pem --raout ra.pem --outform pem
for f in ra*.pem; do
  case $(openssl x509 -in $f -noout -ext keyUsage) in *"Key Encipherment"*) enc=$f;; *) sig=$f;; esac
done
pki --gen --type rsa --size 2048 --outform pem > key.pem
pki --scep --url "$URL" --in key.pem --dn "CN=router-1.demo.example" --options options \
  --cacert-enc $enc --cacert-sig $sig --cacert ca.pem --cipher aes --digest sha256 --outform pem > cert.pem
rm options
`)
	if err != nil {
		return fmt.Errorf("pki --scep: %w: %s", err, out)
	}
	if proxied {
		d.say("no mount namespace is to be had here, and its TLS trusts %s alone: it goes through a TLS proxy on the loopback", site.Bundle)
	}
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "Issued certificate") || strings.HasPrefix(line, "transaction ID") {
			d.quote(line)
		}
	}
	return d.check(filepath.Join(dir, "cert.pem"))
}

// refusal is what `postern scep enroll --output json` prints of a FAILURE.
type refusal struct {
	Name string `json:"fail_info_name"`
	Text string `json:"text"`
}

// refused runs an enrollment that has to be refused, and shows both sides.
func (d *demo) refused(what, challenge string, args ...string) error {
	d.say("%s", what)
	out, errOut, code := d.scep(challenge, append(args, "--challenge-file", "-", "--output", "json")...)
	var r refusal
	if err := json.Unmarshal([]byte(out), &r); code != 1 || err != nil || r.Name == "" {
		return fmt.Errorf("that was not refused as it should: exit %d: %s%s", code, out, errOut)
	}
	d.say("  the device was told: %s: %s", r.Name, r.Text)
	_, id, ok := strings.Cut(r.Text, "(request ")
	if !ok {
		return fmt.Errorf("the answer names no request: %q", r.Text)
	}
	shown, errOut, code := d.site.Postern(d.ctx, nil, "audit", "show", "--req", strings.TrimRight(id, ")"))
	if code != 0 {
		return fmt.Errorf("postern audit show: %s", errOut)
	}
	d.say("  the log says, by `postern audit show --req`:")
	d.quote(shown)
	return nil
}

func (d *demo) refusals() error {
	d.step("Refusals: the device gets one sentence, the log has every reason")
	c, err := d.challenge("CN=camera-3.demo.example")
	if err != nil {
		return err
	}
	if err := d.refused("a name outside the policy, and not the one that the challenge binds:", c,
		"enroll", "--subject", "CN=mail.other.example,OU=Sales", "--out", d.site.Path("refused-1")); err != nil {
		return err
	}
	if err := d.refused("the right name, but a key of RSA-1024:", c,
		"enroll", "--subject", "CN=camera-3.demo.example", "--key-size", "1024", "--out", d.site.Path("refused-2")); err != nil {
		return err
	}
	d.say("the same challenge, used as it was meant:")
	out, errOut, code := d.scep(c, "enroll", "--subject", "CN=camera-3.demo.example", "--challenge-file", "-", "--out", d.site.Path("camera-3"))
	if code != 0 {
		return fmt.Errorf("enrolling: exit %d: %s%s", code, out, errOut)
	}
	d.quote(out)
	return d.refused("and a second time, by somebody with another key:", c,
		"enroll", "--subject", "CN=camera-3.demo.example", "--out", d.site.Path("refused-3"))
}

func (d *demo) renewal() error {
	d.step("A renewal: the certificate vouches for itself, once in this profile")
	out, errOut, code := d.scep("", "renew", "--in", d.site.Path("printer-7"), "--out", d.site.Path("printer-7b"))
	if code != 0 {
		return fmt.Errorf("renewing: exit %d: %s%s", code, out, errOut)
	}
	d.quote(out)
	if err := d.check(d.site.Path("printer-7b", "cert.pem")); err != nil {
		return err
	}
	d.say("the renewed certificate asks again; the lineage has no renewal left:")
	out, errOut, code = d.scep("", "renew", "--in", d.site.Path("printer-7b"), "--out", d.site.Path("printer-7c"), "--output", "json")
	var r refusal
	if err := json.Unmarshal([]byte(out), &r); code != 1 || err != nil || r.Name == "" {
		return fmt.Errorf("a renewal beyond the count was not refused: exit %d: %s%s", code, out, errOut)
	}
	d.say("  the device was told: %s: %s", r.Name, r.Text)
	return nil
}

// log verifies the log, then a copy of it with one octet changed.
func (d *demo) log() error {
	d.step("The log: verified from the first record to the last")
	out, errOut, code := d.site.Postern(d.ctx, nil, "audit", "verify")
	if code != 0 {
		return fmt.Errorf("postern audit verify: %s", errOut)
	}
	d.quote(out)
	d.step("One octet of a copy is changed")
	dir := d.site.Path("tampered")
	if err := os.CopyFS(dir, os.DirFS(d.site.Path("state", "audit"))); err != nil {
		return err
	}
	segment := filepath.Join(dir, "segments", "000000000000.jsonl")
	data, err := os.ReadFile(segment)
	if err != nil {
		return err
	}
	at := bytes.Index(data, []byte(`"say":"`)) + len(`"say":"`)
	data[at] ^= 0x20 // a capital letter, in a sentence that a device was told
	if err := os.WriteFile(segment, data, 0o600); err != nil {
		return err
	}
	out, errOut, code = d.site.Postern(d.ctx, nil, "audit", "verify", "--dir", dir)
	if code != 1 {
		return fmt.Errorf("the change was not found: exit %d: %s%s", code, out, errOut)
	}
	d.say("octet %d of the copy is another; `postern audit verify --dir demo/tampered` exits 1:", at)
	d.quote(errOut)
	return nil
}
