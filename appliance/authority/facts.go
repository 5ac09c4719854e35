package authority

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/audit"
	"github.com/postern-pki/postern/policy"
	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/pkcs10"
	"github.com/postern-pki/postern/protocol/scep"
)

// maxField bounds what a stranger can put into one field of a record, in octets;
// what is longer is cut and ends in its digest.
const maxField = 1 << 10

// cut keeps a stranger's text within maxField and in valid UTF-8. The digest
// lets two long values be told apart.
func cut(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxField {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	head := s[:maxField-80]
	for !utf8.ValidString(head) {
		head = head[:len(head)-1]
	}
	return head + "...sha256:" + hex.EncodeToString(sum[:])
}

func cutAll(in []string) []string {
	const most = 64 // names of one request that a record holds
	if len(in) > most {
		in = append(in[:most:most], fmt.Sprintf("...and %d more", len(in)-most))
	}
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = cut(s)
	}
	return out
}

func (q *proven) actor() audit.Actor {
	a := audit.Actor{Kind: "device", Source: q.source}
	if q.signerName != "" {
		a.ID = q.signerName
	}
	return a
}

func system() audit.Actor { return audit.Actor{Kind: "system", ID: "authority"} }

// facts are what the request itself says, before anything is looked up.
func (p *Pipeline) facts(q *proven) policy.Facts {
	f := FactsOf(q.profile.Name, q.csr, p.now())
	f.SignerDigest, f.Digest, f.Cipher = q.signerDigest, q.digest.String(), q.cipher.String()
	return f
}

// FactsOf are the facts of a CSR alone, for a new enrollment that somebody
// vouched for. Long values are cut here, so that a decision is made from what
// its record shows.
func FactsOf(profile string, csr *pkcs10.Request, now time.Time) policy.Facts {
	f := policy.Facts{
		Profile: profile, Now: now.Unix(), Key: keyFacts(csr), Kind: kindNew, Authorization: "ok",
		Subject: subjectOf(csr), DNS: cutAll(csr.DNSNames), Email: cutAll(csr.Emails), URI: cutAll(csr.URIs), OtherSAN: cutAll(csr.OtherSANs),
		CSRSignature: csr.SignatureAlgorithm.String(), Digest: crypto.SHA256.String(), Cipher: cms.AES128CBC.String(),
	}
	for _, ip := range csr.IPs {
		f.IP = append(f.IP, ip.String())
	}
	f.IP = cutAll(f.IP)
	for _, e := range csr.Extensions {
		f.RequestedExtensions = append(f.RequestedExtensions, policy.ExtensionFact(e.Id, e.Value))
	}
	f.RequestedExtensions = cutAll(f.RequestedExtensions)
	return f
}

func subjectOf(csr *pkcs10.Request) []policy.Attribute {
	var out []policy.Attribute
	for _, n := range csr.Subject {
		name := policy.AttributeName(n.Type)
		if n.Multi {
			name = "multi-valued " + name // no profile mentions it, so it is refused
		}
		out = append(out, policy.Attribute{Name: name, Value: cut(n.Value)})
		if len(out) == 64 {
			break
		}
	}
	return out
}

// complete adds what had to be looked up: who authorized it, the lineage and the
// counts.
func (p *Pipeline) complete(ctx context.Context, q *proven, f *policy.Facts, g grant, v *verdict) error {
	f.Kind, f.AuthorizedBy, f.Authorization = g.kind, g.by, "ok"
	if v != nil {
		f.Authorization = v.reasons[0].Rule + ": " + v.reasons[0].Saw
	}
	names := p.policies.NamesOf(*f).Digest()
	except := ""
	if g.kind == kindRenewal {
		except = q.ours.Serial
		n, err := p.index.LineageRenewals(ctx, q.ours.Lineage)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("authority: counting renewals: %w", err)
		}
		f.Renewal = &policy.RenewalFacts{
			Count: n, LineageStart: q.ours.LineageFrom.Unix(),
			NotBefore: q.ours.NotBefore.Unix(), NotAfter: q.ours.NotAfter.Unix(),
			SameKey: b2i(q.ours.SPKI == q.spkiDigest), SameNames: b2i(q.ours.Names == names),
		}
	}
	used, err := p.index.InUse(ctx, store.Use{Profile: q.profile.Name, Names: names, SPKI: q.spkiDigest, Except: except, Now: p.now()})
	if err != nil {
		return fmt.Errorf("authority: counting certificates: %w", err)
	}
	f.ActiveForSubject, f.KeyOtherSubject = used.Active, b2i(used.KeyByOther)
	f.IssuedLastMinute = p.rate.last(q.profile.Name, p.now())
	return nil
}

func b2i(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// otherKey describes a key that is not RSA.
func otherKey(pub any) (kind string, bits int64, curve string) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA", int64(k.Curve.Params().BitSize), k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519", 256, ""
	default:
		return "other", 0, ""
	}
}

// serialHex is a certificate's serial as the index has it, or "" for one that we
// cannot have issued: ours are positive and at most 20 octets.
func serialHex(content []byte) string {
	for len(content) > 1 && content[0] == 0 {
		content = content[1:]
	}
	if len(content) == 0 || len(content) > 20 {
		return ""
	}
	return hex.EncodeToString(content)
}

// proofTraits are those that the proof itself shows: of them the gate's word is not
// taken.
const proofTraits = protocol.TraitSHA1 | protocol.TraitDES3 | protocol.TraitSHA1CSR | protocol.TraitRenewalByPKCSReq

// clientObject is a client as a record has it, nil for one of which nothing is
// known.
func clientObject(c protocol.Client) audit.Object {
	o := audit.Object{}
	if agent := strings.ToValidUTF8(c.Agent[:min(len(c.Agent), protocol.MaxAgent)], "\uFFFD"); agent != "" {
		o["agent"] = agent
	}
	if words := c.Traits.Words(); len(words) > 0 {
		o["traits"] = words
	}
	if len(o) == 0 {
		return nil
	}
	return o
}

// addClient puts a client into the object of a record.
func addClient(o audit.Object, c protocol.Client) {
	if client := clientObject(c); client != nil {
		o["client"] = client
	}
}

// sender is what is known of who sent the request: the gate's word, and what the
// proof shows. kind is "" where nobody decided yet what is asked for.
func (q *proven) sender(kind string) protocol.Client {
	c := q.client
	c.Traits &^= proofTraits
	if q.digest == crypto.SHA1 {
		c.Traits |= protocol.TraitSHA1
	}
	if q.cipher == cms.DES3CBC {
		c.Traits |= protocol.TraitDES3
	}
	if q.csr != nil && strings.Contains(q.csr.SignatureAlgorithm.String(), "SHA1") {
		c.Traits |= protocol.TraitSHA1CSR
	}
	if kind == kindRenewal && q.message.Type == scep.PKCSReq {
		c.Traits |= protocol.TraitRenewalByPKCSReq
	}
	return c
}
