// Package lint looks at the bytes of a certificate before they are signed: the
// last check that can still say no, and one that shares no code with what built
// them.
//
// # What a caller may rely on
//
// [Check] reads the to-be-signed bytes themselves, strictly as DER, and reports
// every broken rule by a name that stays the same from version to version, so
// that a profile's exceptions can quote it. Only rules of style can be excepted:
// those that keep a device's certificate from being a CA's, or another issuer's,
// cannot.
//
// # What it does not protect against
//
// A field of [Rules] that is left zero compares nothing. The lint does not know
// whether the names are the device's: policy decided that. It is no substitute
// for a full linter of RFC 5280, which finds more and costs more.
package lint

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"net/netip"
	"slices"
	"time"
)

// Rules say what the bytes are compared with. The zero value checks what holds
// for every certificate of a device.
type Rules struct {
	Issuer             []byte    // DER of the CA's subject
	IssuerSPKI         []byte    // DER of the CA's key: no device may have it
	IssuerNotAfter     time.Time // a certificate ends no later
	AuthorityKeyID     []byte    // the CA's subjectKeyIdentifier
	SignatureAlgorithm []byte    // DER of the AlgorithmIdentifier that fits the CA's key

	Subject []byte // DER of the name that policy decided on
	SPKI    []byte // DER of the key that was asked for
	Names   *Names // the alternative names that policy decided on, all of them and no other

	KeyUsage    x509.KeyUsage           // usages that are allowed
	ExtKeyUsage []asn1.ObjectIdentifier // extended usages that are allowed
	MaxValidity time.Duration           // from notBefore to notAfter

	Status    *Status // where policy decided that the certificate says its status is, exactly
	AnyStatus *Status // the URLs of which any may be there

	Except  []string // names of rules whose findings are left out; see [Excusable]
	NoStyle bool     // every rule that can be excepted is
}

// Names are subject alternative names, in any order.
type Names struct {
	DNS, Email, URI []string
	IP              []netip.Addr
}

// A Finding is one broken rule.
type Finding struct {
	Rule string // such as "basic-constraints"
	Say  string // what was seen, in words for an operator
}

// String returns both parts.
func (f Finding) String() string { return f.Rule + ": " + f.Say }

// A rule looks at one thing and says how it is broken, or "".
type rule struct {
	name      string
	excusable bool
	check     func(*TBS, Rules) string
}

// rules are all rules in the order of the certificate's fields.
var rules = []rule{
	{"version", false, version},
	{"serial", false, serial},
	{"signature-algorithm", false, signatureAlgorithm},
	{"issuer", false, issuer},
	{"validity-order", false, validityOrder},
	{"validity-length", false, validityLength},
	{"validity-issuer", false, validityIssuer},
	{"subject", false, subject},
	{"subject-not-issuer", false, subjectNotIssuer},
	{"subject-string", false, subjectString},
	{"subject-length", true, subjectLength},
	{"key", false, key},
	{"key-strength", false, keyStrength},
	{"key-not-issuer", false, keyNotIssuer},
	{"unique-ids", false, uniqueIDs},
	{"extension-repeated", false, extensionRepeated},
	{"extension-unknown", true, extensionUnknown},
	{"extension-critical-unknown", false, extensionCriticalUnknown},
	{"basic-constraints", false, basicConstraints},
	{"key-usage", false, keyUsage},
	{"key-usage-present", false, keyUsagePresent},
	{"key-usage-fits-key", true, keyUsageFitsKey},
	{"extended-key-usage", false, extendedKeyUsage},
	{"extended-key-usage-present", false, extendedKeyUsagePresent},
	{"subject-alternative-name", false, subjectAltName},
	{"subject-alternative-name-critical", true, subjectAltNameCritical},
	{"dns-name", true, dnsName},
	{"crl-distribution-points", false, crlPoints},
	{"authority-info-access", false, infoAccess},
	{"subject-key-identifier", true, subjectKeyID},
	{"authority-key-identifier", true, authorityKeyID},
}

// All returns the names of all rules.
func All() []string {
	names := []string{"structure"}
	for _, r := range rules {
		names = append(names, r.name)
	}
	return names
}

// Excusable reports whether a profile may except the rule of that name.
func Excusable(name string) bool {
	return slices.ContainsFunc(rules, func(r rule) bool { return r.name == name && r.excusable })
}

// Check returns every rule that the DER of a TBSCertificate breaks. Bytes that
// are no TBSCertificate give one finding, "structure".
func Check(tbs []byte, want Rules) []Finding {
	t, err := Parse(tbs)
	if err != nil {
		return []Finding{{"structure", err.Error()}}
	}
	return CheckParsed(t, want)
}

// CheckParsed is [Check] for bytes that were parsed already.
func CheckParsed(t *TBS, want Rules) []Finding {
	var found []Finding
	for _, r := range rules {
		if r.excusable && (want.NoStyle || slices.Contains(want.Except, r.name)) {
			continue
		}
		if say := r.check(t, want); say != "" {
			found = append(found, Finding{r.name, say})
		}
	}
	return found
}

// differs reports whether a value that the rules name is another than the one
// seen; a rule that names none is content.
func differs(seen, want []byte) bool { return want != nil && !bytes.Equal(seen, want) }
