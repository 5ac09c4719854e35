package scep

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/postern-pki/postern/protocol"
	"github.com/postern-pki/postern/protocol/cms"
)

// certsOf returns those of a generation as devices get them, each once, in an order
// that they can see: nothing sorts it. The RA comes first, for clients that do not
// look at the key usage and take the first certificate for the one to encrypt to and
// to verify with; a profile can have the CA first for clients that take the first for
// the CA's.
func (x *exchange) certsOf(g *protocol.Generation) [][]byte {
	ra := [][]byte{g.RASign, g.RADecrypt}
	list := slices.Concat(ra, x.chain(g))
	if x.service.CAFirst {
		list = slices.Concat(x.chain(g), ra)
	}
	var out [][]byte
	for _, c := range list {
		if !slices.ContainsFunc(out, func(have []byte) bool { return bytes.Equal(have, c) }) {
			out = append(out, c)
		}
	}
	return out
}

// chain is the CA of a generation and what stands above it, without the root where
// the profile leaves that out. A CA that is its own root stays: it is what issues.
func (x *exchange) chain(g *protocol.Generation) [][]byte {
	above := g.Chain
	if x.service.NoRoot && len(above) > 0 {
		above = above[:len(above)-1]
	}
	return slices.Concat([][]byte{g.CA}, above)
}

// withChain is a certificate that was issued, with its chain where the profile wants
// that: of the CA that issued it, which is another than the request's where an older
// certificate is asked for.
func (x *exchange) withChain(issued []byte) ([][]byte, error) {
	if !x.service.ReplyChain {
		return [][]byte{issued}, nil
	}
	c, err := cms.ParseCertificate(issued)
	if err != nil {
		return nil, fmt.Errorf("scep: the issued certificate: %w", err)
	}
	g, err := x.issuerOf(c)
	if err != nil {
		return nil, err
	}
	if g == nil {
		return [][]byte{issued}, nil
	}
	return slices.Concat([][]byte{issued}, x.chain(g)), nil
}

// nextCA answers GetNextCACert (RFC 8894, section 4.7) while a next generation is
// staged.
func (x *exchange) nextCA(ctx context.Context) (answer, error) {
	next := x.service.Named(x.service.Next)
	if x.service.Next == "" || next == nil {
		return x.refuse(ctx, http.StatusNotFound, protocol.Unsupported, "no next CA")
	}
	body, err := x.nextCAs.get(ctx, x, next)
	if err != nil {
		return answer{}, err
	}
	x.record.NextCA = next.Name
	return x.served(ctx, typeNextCA, body)
}

// signNextCA has the RA of the current generation sign the certificates of the next
// one. RFC 8894 has them in the degenerate message inside; some clients read them
// beside the signer's certificate instead, so they are in both places.
func (x *exchange) signNextCA(ctx context.Context, next *protocol.Generation) ([]byte, error) {
	current, list := x.service.Current(), x.certsOf(next)
	inner, err := cms.CertsOnly(list)
	if err != nil {
		return nil, err
	}
	key, err := x.keys.Signer(ctx, x.record.Profile, current.RASign)
	if err != nil {
		return nil, fmt.Errorf("scep: RA signing key: %w", err)
	}
	ra, err := x.own.parse(current.RASign)
	if err != nil {
		return nil, fmt.Errorf("scep: RA signing certificate: %w", err)
	}
	digest := crypto.SHA256
	if !digestAllowed(x.service, digest) && len(x.service.Digests) > 0 {
		digest = x.service.Digests[0]
	}
	return cms.Sign(cms.SignOptions{Certificate: ra, Chain: list, Key: key, Digest: digest, Content: inner})
}

// nextCAs remembers the answers to GetNextCACert: anybody may ask, and a signature
// each would be the token's time for the asking.
type nextCAs struct {
	turn chan struct{} // held while one is signed: the others wait for it
	mu   *sync.Mutex
	made map[string]madeNextCA // by profile
}

type madeNextCA struct {
	of    [sha256.Size]byte // what it was made from
	body  []byte
	until time.Time
}

// nextCAFor is how long an answer is given out; its signing time is so much older.
const nextCAFor = time.Hour

func newNextCAs() nextCAs {
	return nextCAs{turn: make(chan struct{}, 1), mu: new(sync.Mutex), made: make(map[string]madeNextCA)}
}

// get returns the answer for the exchange's profile. Profiles are those that are
// there, so that what is remembered is bounded.
func (n *nextCAs) get(ctx context.Context, x *exchange, next *protocol.Generation) ([]byte, error) {
	of := sha256.New()
	for _, c := range slices.Concat([][]byte{x.service.Current().RASign}, x.certsOf(next)) {
		of.Write(c)
	}
	sum := [sha256.Size]byte(of.Sum(nil))
	if body := n.have(x, sum); body != nil {
		return body, nil
	}
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if body := n.have(x, sum); body != nil {
		return body, nil
	}
	body, err := x.signNextCA(ctx, next)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.made[x.record.Profile] = madeNextCA{sum, body, x.now().Add(nextCAFor)}
	return body, nil
}

func (n *nextCAs) have(x *exchange, sum [sha256.Size]byte) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	if m, ok := n.made[x.record.Profile]; ok && m.of == sum && x.now().Before(m.until) {
		return m.body
	}
	return nil
}

// addressee finds the one recipient that names an RA-decrypt certificate of the
// profile, and with it the generation that the message belongs to (RFC 8894,
// section 5.1); nil if there is none, or more than one.
func (x *exchange) addressee(e *cms.Envelope) (r *cms.Recipient, ra *cms.Certificate, err error) {
	for g := range x.service.Generations {
		generation := &x.service.Generations[g]
		cert, err := x.own.parse(generation.RADecrypt)
		if err != nil {
			return nil, nil, fmt.Errorf("scep: RA-decrypt certificate: %w", err)
		}
		for i := range e.Recipients {
			if !e.Recipients[i].Names(cert) {
				continue
			}
			if r != nil {
				x.generation = x.service.Current()
				return nil, nil, nil
			}
			r, ra, x.generation = &e.Recipients[i], cert, generation
		}
	}
	return r, ra, nil
}

// belongs finds out, for a message that was refused before its envelope was looked
// at, which generation it is for: a client of an old one does not know another's RA.
func (x *exchange) belongs(signed *cms.Signed) {
	if x.generation != nil {
		return
	}
	x.generation = x.service.Current()
	if signed == nil || len(x.service.Generations) == 1 {
		return
	}
	der, err := cms.DER(signed.Content, cms.DefaultLimits())
	if err != nil {
		return
	}
	if e, err := cms.ParseEnvelope(der); err == nil {
		_, _, _ = x.addressee(e) // what fails leaves the current one
	}
}

// issuedByUs reports whether the signer's certificate says that a CA of the profile
// issued it, of any generation: a renewal may go from one to another.
func (x *exchange) issuedByUs(signer *cms.Certificate) (bool, error) {
	g, err := x.issuerOf(signer)
	return g != nil, err
}

// issuerOf returns the generation whose CA a certificate names as its issuer; nil if
// there is none.
func (x *exchange) issuerOf(c *cms.Certificate) (*protocol.Generation, error) {
	for i := range x.service.Generations {
		g := &x.service.Generations[i]
		ca, err := x.own.parse(g.CA)
		if err != nil {
			return nil, fmt.Errorf("scep: CA certificate: %w", err)
		}
		if bytes.Equal(c.RawIssuer, ca.RawSubject) {
			return g, nil
		}
	}
	return nil, nil
}
