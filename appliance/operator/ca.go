package operator

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // a name, which clients and MDMs ask for
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/postern-pki/postern/appliance/authority"
	"github.com/postern-pki/postern/appliance/operator/acts"
	"github.com/postern-pki/postern/appliance/store"
	"github.com/postern-pki/postern/protocol"
)

// The states of a [CA].
const (
	CACurrent = "current" // devices are given it
	CANext    = "next"    // devices are told of it as the next, and requests to it are answered
	CAOther   = "other"   // requests to it are answered
)

// CA is one generation of an issuer.
type CA struct {
	Issuer     string     `json:"issuer"`
	Generation string     `json:"generation"`
	Name       string     `json:"name"` // as certificates' rows have it for their issuer
	State      string     `json:"state"`
	Since      *time.Time `json:"since,omitempty"`  // of the current one: when it was switched to
	Before     string     `json:"before,omitempty"` // of the current one: the generation that was current before
	Subject    string     `json:"subject"`
	SHA256     string     `json:"sha256"`
	NotBefore  time.Time  `json:"not_before"`
	NotAfter   time.Time  `json:"not_after"`
	Until      time.Time  `json:"until"` // when the first of its and its RA's certificates ends
	Live       int64      `json:"live"`  // certificates in use: issued, not expired, not to be revoked, not renewed

	Fingerprints []Fingerprint `json:"fingerprints"` // of what devices are given, in that order by default
}

// Fingerprint is of a certificate that devices are given, for a check by other means
// (RFC 8894, section 2.2). Some devices and MDMs ask for the SHA-1: it finds a
// certificate, and proves none.
type Fingerprint struct {
	Role    string `json:"role"` // ra-sign, ra-decrypt, ra for both, ca, chain, root
	Subject string `json:"subject"`
	SHA256  string `json:"sha256"`
	SHA1    string `json:"sha1"`
}

// fingerprintsOf are those of a generation.
func fingerprintsOf(g protocol.Generation) ([]Fingerprint, error) {
	type one struct {
		role string
		der  []byte
	}
	list := []one{{"ra-sign", g.RASign}, {"ra-decrypt", g.RADecrypt}, {"ca", g.CA}}
	if bytes.Equal(g.RASign, g.RADecrypt) {
		list = []one{{"ra", g.RASign}, {"ca", g.CA}}
	}
	for i, der := range g.Chain {
		list = append(list, one{map[bool]string{false: "chain", true: "root"}[i == len(g.Chain)-1], der})
	}
	out := make([]Fingerprint, len(list))
	for i, c := range list {
		parsed, err := x509.ParseCertificate(c.der)
		if err != nil {
			return nil, fmt.Errorf("operator: certificate %s of generation %s: %w", c.role, g.Name, err)
		}
		strong, short := sha256.Sum256(c.der), sha1.Sum(c.der) //nolint:gosec // a name, which clients and MDMs ask for
		out[i] = Fingerprint{c.role, parsed.Subject.String(), hex.EncodeToString(strong[:]), hex.EncodeToString(short[:])}
	}
	return out, nil
}

// CAs is the answer of GET /api/v1/cas, by issuer.
type CAs struct {
	CAs []CA `json:"cas"`
}

// CASwitch is the body of POST /api/v1/cas/switch, and its answer.
type CASwitch = acts.CASwitch

// Rollover is the answer of GET /api/v1/rollover: how far the devices of an issuer
// are on their way to the generation To, which is staged, or current after a switch.
type Rollover struct {
	Issuer   string            `json:"issuer"`
	Current  string            `json:"current"`
	To       string            `json:"to"`     // "" where there is nowhere to go
	Staged   bool              `json:"staged"` // devices are told of To as the next CA
	Moved    int64             `json:"moved"`  // live certificates that To issued
	Waiting  int64             `json:"waiting"`
	Profiles []RolloverProfile `json:"profiles"`
	// Certificates are those that wait, the newest first; Before continues the list,
	// 0 is its end.
	Certificates []WaitingCertificate `json:"certificates"`
	Before       uint64               `json:"before"`
}

// RolloverProfile is one profile's part. Addresses are those that were given the
// certificates of To by GetNextCACert, and Fetches the newest of them.
type RolloverProfile struct {
	Profile   string  `json:"profile"`
	Moved     int64   `json:"moved"`
	Waiting   int64   `json:"waiting"`
	Addresses int64   `json:"addresses"`
	Fetches   []Fetch `json:"fetches"`
}

// Fetch says that somebody at an address was given the next CA's certificates.
type Fetch struct {
	Address string    `json:"address"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   int64     `json:"count"`
}

// WaitingCertificate is a live one of another generation than To. Address asked for
// it; Fetched is when somebody there was last given the certificates of To.
type WaitingCertificate struct {
	Certificate
	Address string     `json:"address"`
	Fetched *time.Time `json:"fetched,omitempty"`
}

func (s *Service) cas(ctx context.Context, _ *request) (int, any, error) {
	counts, err := s.Index.CountCAs(ctx, s.Now())
	if err != nil {
		return 0, nil, err
	}
	live := map[string]int64{}
	for _, c := range counts {
		live[c.Issuer] += c.Live
	}
	out := CAs{CAs: []CA{}}
	for _, c := range s.Acts.CAs() {
		ca := caOf(c, live[c.Name])
		if ca.Fingerprints, err = fingerprintsOf(c.Given); err != nil {
			return 0, nil, err
		}
		out.CAs = append(out.CAs, ca)
	}
	return http.StatusOK, out, nil
}

func caOf(c authority.CAState, live int64) CA {
	sum := sha256.Sum256(c.Certificate.Raw)
	out := CA{
		Issuer: c.Issuer, Generation: c.Generation, Name: c.Name, State: CAOther, Before: c.Before, Subject: c.Certificate.Subject.String(),
		SHA256: hex.EncodeToString(sum[:]), NotBefore: c.Certificate.NotBefore, NotAfter: c.Certificate.NotAfter, Until: c.Until, Live: live,
	}
	switch {
	case c.Current:
		out.State = CACurrent
	case c.Next:
		out.State = CANext
	}
	if !c.Since.IsZero() {
		out.Since = &c.Since
	}
	return out
}

// rollover accounts for the clients of one issuer.
func (s *Service) rollover(ctx context.Context, r *request) (int, any, error) {
	cas := slices.DeleteFunc(s.Acts.CAs(), func(c authority.CAState) bool { return c.Issuer != r.query.Get("issuer") })
	if len(cas) == 0 {
		return 0, nil, refuse(http.StatusNotFound, "no issuer has that name", "postern ca list")
	}
	limit, err := limitOf(r)
	if err != nil {
		return 0, nil, err
	}
	var before uint64
	if v := r.query.Get("before"); v != "" {
		if before, err = strconv.ParseUint(v, 10, 53); err != nil {
			return 0, nil, refuse(http.StatusBadRequest, "before is a number that a list gave", "")
		}
	}
	out, to, others := toward(cas)
	if err := s.account(ctx, &out, cas, to, limit); err != nil {
		return 0, nil, err
	}
	if out.To == "" || len(others) == 0 {
		return http.StatusOK, out, nil
	}
	list, err := s.Index.Certificates(ctx, store.CertificateFilter{Issuers: others, Living: s.Now(), Before: before, Limit: limit})
	if err != nil {
		return 0, nil, err
	}
	for _, i := range list {
		w := WaitingCertificate{Certificate: certificateOf(i), Address: i.Source}
		switch at, err := s.Index.Fetched(ctx, i.Profile, out.To, i.Source); {
		case err == nil:
			w.Fetched = &at
		case !errors.Is(err, store.ErrNotFound):
			return 0, nil, err
		}
		out.Certificates = append(out.Certificates, w)
	}
	if n := len(list); n == limit {
		out.Before = list[n-1].IntentSeq
	}
	return http.StatusOK, out, nil
}

// toward says where the devices of an issuer are going: to the staged generation,
// or, once that is current, to the current one. others are the names of the CAs that
// they come from.
func toward(cas []authority.CAState) (out Rollover, to authority.CAState, others []string) {
	for _, c := range cas {
		out.Issuer = c.Issuer
		switch {
		case c.Current:
			out.Current = c.Generation
			if !out.Staged {
				to = c
			}
		case c.Next:
			out.Staged, to = true, c
		}
	}
	for _, c := range cas {
		if c.Name != to.Name {
			others = append(others, c.Name)
		}
	}
	if out.Staged || len(others) > 0 {
		out.To = to.Generation
	}
	out.Profiles, out.Certificates = []RolloverProfile{}, []WaitingCertificate{}
	return out, to, others
}

// account counts, by profile, who has moved, who waits, and who has fetched.
func (s *Service) account(ctx context.Context, out *Rollover, cas []authority.CAState, to authority.CAState, limit int) error {
	counts, err := s.Index.CountCAs(ctx, s.Now())
	if err != nil {
		return err
	}
	profiles := map[string]*RolloverProfile{}
	for _, name := range s.Acts.ProfilesOf(out.Issuer) {
		out.Profiles = append(out.Profiles, RolloverProfile{Profile: name, Fetches: []Fetch{}})
	}
	for i := range out.Profiles {
		profiles[out.Profiles[i].Profile] = &out.Profiles[i]
	}
	for _, c := range counts {
		if !slices.ContainsFunc(cas, func(ca authority.CAState) bool { return ca.Name == c.Issuer }) {
			continue
		}
		moved, waiting := c.Live, int64(0)
		if c.Issuer != to.Name {
			moved, waiting = 0, c.Live
		}
		out.Moved, out.Waiting = out.Moved+moved, out.Waiting+waiting
		if p, ok := profiles[c.Profile]; ok { // else a profile that is not there any more
			p.Moved, p.Waiting = p.Moved+moved, p.Waiting+waiting
		}
	}
	if out.To == "" {
		return nil
	}
	for i := range out.Profiles {
		p := &out.Profiles[i]
		list, all, err := s.Index.Fetches(ctx, p.Profile, out.To, limit)
		if err != nil {
			return err
		}
		p.Addresses = all
		for _, f := range list {
			p.Fetches = append(p.Fetches, Fetch{Address: f.Source, First: f.First, Last: f.Last, Count: f.Count})
		}
	}
	return nil
}

func (s *Service) switchCA(ctx context.Context, r *request) (int, any, error) {
	var asked CASwitch
	dec := json.NewDecoder(bytes.NewReader(r.Body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&asked); err != nil {
		return 0, nil, refuse(http.StatusBadRequest, "the body is not a switch", "fields: issuer, from, to")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return 0, nil, refuse(http.StatusBadRequest, "something follows the switch", "fields: issuer, from, to")
	}
	return s.alone(ctx, r, acts.SwitchCA, acts.Parameters{Switch: &asked})
}
