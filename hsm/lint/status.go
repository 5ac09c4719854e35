package lint

import (
	"encoding/asn1"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Status is where a certificate says that its status is: URLs, in order.
type Status struct {
	CRL, OCSP, CAIssuers []string
}

// crlPoints wants what policy decided on, in the one form: distribution points with
// one URL each and nothing else, no reasons and no other issuer of the list.
func crlPoints(t *TBS, want Rules) string {
	e, there := t.extension(2, 5, 29, 31)
	urls, ok := points(e.Value)
	switch {
	case there && (!ok || e.Critical):
		return "cRLDistributionPoints is critical, or has another form than URLs"
	case want.Status != nil && !slices.Equal(urls, want.Status.CRL):
		return "cRLDistributionPoints has other URLs than were decided on"
	case want.AnyStatus != nil && !within(urls, want.AnyStatus.CRL):
		return "cRLDistributionPoints has a URL that is not allowed"
	}
	return ""
}

func points(value []byte) (urls []string, ok bool) {
	zero := cbasn1.Tag(0).Constructed().ContextSpecific()
	in := cryptobyte.String(value)
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() || list.Empty() {
		return nil, false
	}
	for !list.Empty() {
		var one, name, full, url cryptobyte.String
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1(&name, zero) || !one.Empty() || !name.ReadASN1(&full, zero) || !name.Empty() ||
			!full.ReadASN1(&url, cbasn1.Tag(6).ContextSpecific()) || !full.Empty() {
			return nil, false
		}
		urls = append(urls, string(url))
	}
	return urls, true
}

// infoAccess is the same of authorityInfoAccess: OCSP and the CA's certificate.
func infoAccess(t *TBS, want Rules) string {
	e, there := t.extension(1, 3, 6, 1, 5, 5, 7, 1, 1)
	s, ok := accesses(e.Value)
	switch {
	case there && (!ok || e.Critical):
		return "authorityInfoAccess is critical, or has another form than URLs of OCSP and of the CA's certificate"
	case want.Status != nil && (!slices.Equal(s.OCSP, want.Status.OCSP) || !slices.Equal(s.CAIssuers, want.Status.CAIssuers)):
		return "authorityInfoAccess has other URLs than were decided on"
	case want.AnyStatus != nil && (!within(s.OCSP, want.AnyStatus.OCSP) || !within(s.CAIssuers, want.AnyStatus.CAIssuers)):
		return "authorityInfoAccess has a URL that is not allowed"
	}
	return ""
}

func accesses(value []byte) (s Status, ok bool) {
	in := cryptobyte.String(value)
	var list cryptobyte.String
	if !in.ReadASN1(&list, cbasn1.SEQUENCE) || !in.Empty() || list.Empty() {
		return s, false
	}
	for !list.Empty() {
		var one, url cryptobyte.String
		var method asn1.ObjectIdentifier
		if !list.ReadASN1(&one, cbasn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&method) || !one.ReadASN1(&url, cbasn1.Tag(6).ContextSpecific()) || !one.Empty() {
			return s, false
		}
		switch {
		case method.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}):
			s.OCSP = append(s.OCSP, string(url))
		case method.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}):
			s.CAIssuers = append(s.CAIssuers, string(url))
		default:
			return s, false
		}
	}
	return s, true
}

func within(all, allowed []string) bool {
	return !slices.ContainsFunc(all, func(u string) bool { return !slices.Contains(allowed, u) })
}
