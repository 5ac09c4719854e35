package webhook

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"time"

	"github.com/postern-pki/postern/policy/challenge"
)

// The JSON of a question, with the names and shapes of step-ca's.
type (
	body struct {
		Timestamp       time.Time `json:"timestamp"`
		ProvisionerName string    `json:"provisionerName,omitempty"`
		Request         *csr      `json:"x509CertificateRequest,omitempty"`
		Challenge       string    `json:"scepChallenge,omitempty"`
		Transaction     string    `json:"scepTransactionID,omitempty"`
	}
	csr struct {
		Version            int         `json:"version"`
		Subject            name        `json:"subject"`
		RawSubject         []byte      `json:"rawSubject"`
		DNSNames           []string    `json:"dnsNames"`
		EmailAddresses     []string    `json:"emailAddresses"`
		IPAddresses        []string    `json:"ipAddresses"`
		URIs               []string    `json:"uris"`
		SANs               []any       `json:"sans"`
		Extensions         []extension `json:"extensions"`
		SignatureAlgorithm string      `json:"signatureAlgorithm"`
		PublicKey          []byte      `json:"publicKey"`
		PublicKeyAlgorithm string      `json:"publicKeyAlgorithm"`
		Raw                []byte      `json:"raw,omitempty"`
	}
	name struct {
		Country            []string    `json:"country,omitempty"`
		Organization       []string    `json:"organization,omitempty"`
		OrganizationalUnit []string    `json:"organizationalUnit,omitempty"`
		Locality           []string    `json:"locality,omitempty"`
		Province           []string    `json:"province,omitempty"`
		StreetAddress      []string    `json:"streetAddress,omitempty"`
		PostalCode         []string    `json:"postalCode,omitempty"`
		SerialNumber       string      `json:"serialNumber,omitempty"`
		CommonName         string      `json:"commonName,omitempty"`
		ExtraNames         []attribute `json:"extraNames,omitempty"`
	}
	attribute struct {
		Type  string `json:"type"`
		Value any    `json:"value"`
	}
	extension struct {
		ID       string `json:"id"`
		Critical bool   `json:"critical"`
		Value    []byte `json:"value"`
	}
)

// named are the attributes that have a field of their own in a name.
var named = []string{"2.5.4.6", "2.5.4.10", "2.5.4.11", "2.5.4.3", "2.5.4.5", "2.5.4.7", "2.5.4.8", "2.5.4.9", "2.5.4.17"}

// Body returns the octets that ask about a request. Of a request that is Bare the
// field raw is left out. The error is about a CSR that crypto/x509 cannot read.
func Body(q challenge.Question, now time.Time) ([]byte, error) {
	r, err := x509.ParseCertificateRequest(q.CSR)
	if err != nil {
		return nil, fmt.Errorf("webhook: the CSR: %w", err)
	}
	out := &csr{
		Version: r.Version, Subject: nameOf(r.Subject), RawSubject: r.RawSubject, DNSNames: r.DNSNames, EmailAddresses: r.EmailAddresses,
		PublicKey: r.RawSubjectPublicKeyInfo, PublicKeyAlgorithm: r.PublicKeyAlgorithm.String(),
	}
	for _, ip := range r.IPAddresses {
		out.IPAddresses = append(out.IPAddresses, ip.String())
	}
	for _, u := range r.URIs {
		out.URIs = append(out.URIs, u.String())
	}
	for _, e := range r.Extensions {
		out.Extensions = append(out.Extensions, extension{e.Id.String(), e.Critical, e.Value})
	}
	if !q.Bare {
		out.Raw = q.CSR
	}
	return json.Marshal(body{Timestamp: now.UTC(), ProvisionerName: q.Profile, Request: out, Challenge: string(q.Challenge), Transaction: q.Transaction})
}

func nameOf(n pkix.Name) name {
	out := name{
		Country: n.Country, Organization: n.Organization, OrganizationalUnit: n.OrganizationalUnit, Locality: n.Locality,
		Province: n.Province, StreetAddress: n.StreetAddress, PostalCode: n.PostalCode, SerialNumber: n.SerialNumber, CommonName: n.CommonName,
	}
	for _, a := range n.Names {
		known := false
		for _, oid := range named {
			known = known || oid == a.Type.String()
		}
		if !known {
			out.ExtraNames = append(out.ExtraNames, attribute{a.Type.String(), a.Value})
		}
	}
	return out
}
