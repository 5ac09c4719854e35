package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

func itoa[N int | int64](n N) string { return strconv.FormatInt(int64(n), 10) }

// authorization looks at who asks, and for what.
func (r *run) authorization() {
	known := slices.Contains([]string{KindNew, KindRenewal, KindNewLineage}, r.f.Kind)
	r.check("kind", known && (r.f.Kind == KindRenewal) == (r.f.Renewal != nil), r.f.Kind,
		"a request has to be new or a renewal, and its facts have to say which")
	r.check(RuleAuthorization, r.f.Authorization == Authorized, r.f.Authorization, "the request has to be authorized")
}

// tripleDES are the names that triple DES in CBC mode goes by.
var tripleDES = []string{"DES-EDE3-CBC", "DES3-CBC", "3DES-CBC", "DES-CBC3"}

// csrSignatures are the signatures that a request may carry, by crypto/x509's
// names. SHA-1 needs legacy.
var csrSignatures = map[string][]string{
	keyRSA:   {"SHA256-RSA", "SHA384-RSA", "SHA512-RSA"},
	keyECDSA: {"ECDSA-SHA256", "ECDSA-SHA384", "ECDSA-SHA512"},
}

// clients looks at the algorithms of the message and of the CSR.
func (r *run) clients() {
	p := r.c.Clients
	kind := keyRSA // also of a key that is refused for its type
	if r.f.Key.Type == keyECDSA && r.c.Key.takes(keyECDSA) {
		kind = keyECDSA
	}
	digests, ciphers, signatures := slices.Clone(p.Digests), slices.Clone(p.Ciphers), slices.Clone(csrSignatures[kind])
	if p.SHA1 {
		digests = append(digests, "SHA-1")
		signatures = append(signatures, map[string]string{keyRSA: "SHA1-RSA", keyECDSA: "ECDSA-SHA1"}[kind])
	}
	triple := p.DES3 && slices.Contains(tripleDES, r.f.Cipher)
	if p.DES3 {
		ciphers = append(ciphers, tripleDES[0])
	}
	r.check("clients.digests", slices.Contains(digests, r.f.Digest), r.f.Digest,
		"the message's digest has to be one of "+strings.Join(digests, ", "))
	r.check("clients.ciphers", slices.Contains(ciphers, r.f.Cipher) || triple, r.f.Cipher,
		"the message's cipher has to be one of "+strings.Join(ciphers, ", "))
	r.check("clients.csr", slices.Contains(signatures, r.f.CSRSignature), r.f.CSRSignature,
		"the CSR's signature has to be one of "+strings.Join(signatures, ", "))
}

// subject looks at each attribute that was asked for, and at each rule.
func (r *run) subject() {
	asked := r.f.Subject
	if len(asked) > maxAttributes {
		r.check("subject.count", false, itoa(len(asked)), "a subject may have "+itoa(maxAttributes)+" attributes at most")
		asked = asked[:maxAttributes]
	}
	for _, a := range asked {
		name := canonicalName(a.Name)
		known := slices.ContainsFunc(r.c.subject, func(s subjectRule) bool { return s.typ.name == name })
		if _, ok := typeOf(name); !known && (ok || dotted(name)) {
			r.check("subject."+name, false, a.Value, "the profile does not allow "+name+" in a subject")
		} else if !known {
			r.check("subject.other", false, a.Name+"="+a.Value, "the profile does not allow all attributes of this subject")
		}
	}
	for _, rule := range r.c.subject {
		var values []string
		for _, a := range asked {
			if canonicalName(a.Name) == rule.typ.name {
				values = append(values, a.Value)
			}
		}
		r.attribute(rule, values)
	}
}

func (r *run) attribute(rule subjectRule, values []string) {
	name, at := rule.typ.name, "subject."+rule.typ.name
	if rule.value != "" {
		r.check(at+".value", true, strings.Join(values, ", "), name+" is set by the profile, whatever was asked")
		return
	}
	for _, v := range values {
		if kind, say := valueFault(rule.typ, v); say != "" {
			r.check(at+"."+kind, false, v, say)
		}
		r.check(at+".pattern", rule.pattern != nil && rule.pattern.MatchString(v), v, name+" has to match the profile's pattern")
	}
	if rule.required {
		r.check(at+".required", len(values) > 0, itoa(len(values)), name+" has to be there")
	}
	r.check(at+".max", len(values) <= rule.max, itoa(len(values)), name+" may occur "+itoa(rule.max)+" times at most")
}

// sans looks at the subjectAltNames.
func (r *run) sans() {
	for _, kind := range []struct {
		name   string
		values []string
	}{{"dns", r.f.DNS}, {"ip", r.f.IP}, {"email", r.f.Email}, {"uri", r.f.URI}} {
		values := kind.values
		if len(values) > maxSANs {
			r.check("san."+kind.name+".count", false, itoa(len(values)), "a request may have "+itoa(maxSANs)+" names of one kind at most")
			values = values[:maxSANs]
		}
		if rule := r.c.san[kind.name]; rule != nil {
			r.sanKind(kind.name, rule, values)
			continue
		}
		for _, v := range values {
			r.check("san."+kind.name, false, v, "the profile does not allow subjectAltNames of the kind "+kind.name)
		}
	}
	if n := len(r.f.OtherSAN); n > 0 {
		r.check("san.other", false, strings.Join(r.f.OtherSAN[:min(n, maxSANs)], ", "), "the profile does not allow subjectAltNames of this kind")
	}
}

func (r *run) sanKind(kind string, rule *sanRule, values []string) {
	at := "san." + kind
	seen := map[string]bool{}
	for _, v := range values {
		if say := sanFault(kind, v); say != "" {
			r.check(at+".syntax", false, v, "a subjectAltName of the kind "+kind+" "+say)
		}
		if seen[lower(v)] {
			r.check(at+".twice", false, v, "a subjectAltName may not occur twice")
		}
		seen[lower(v)] = true
		if rule.pattern != nil {
			r.check(at+".pattern", rule.pattern.MatchString(v), v, "a subjectAltName of the kind "+kind+" has to match the profile's pattern")
		}
		if kind == "ip" {
			a, err := netip.ParseAddr(v)
			ok := err == nil && slices.ContainsFunc(rule.networks, func(p netip.Prefix) bool { return p.Contains(a) })
			r.check(at+".networks", ok, v, "an address has to lie in the profile's networks")
		}
		if rule.mustEqual {
			r.check(at+".must_equal", r.isCN(v), v, "a dNSName has to equal the CN")
		}
	}
	if rule.required && (!r.binding || !rule.mustEqual) {
		r.check(at+".required", len(values) > 0, itoa(len(values)), "a subjectAltName of the kind "+kind+" has to be there")
	}
	r.check(at+".max", len(values) <= rule.max, itoa(len(values)), "a request may have "+itoa(rule.max)+" subjectAltNames of the kind "+kind+" at most")
}

// isCN reports whether the name equals the CN as it would be issued.
func (r *run) isCN(v string) bool {
	for _, a := range namesOf(r.c, r.f, true).Subject {
		if a.Name == "CN" && lower(a.Value) == lower(v) {
			return true
		}
	}
	return false
}

// extensions looks at what was asked for besides names, none of which is issued.
func (r *run) extensions() {
	const oidSAN = "2.5.29.17"
	asked := r.f.RequestedExtensions
	for _, e := range asked[:min(len(asked), maxSANs)] {
		id, ca := strings.CutSuffix(e, caMark)
		switch {
		case ca:
			r.check("extensions.basicConstraints", false, id+caMark, "a device may not ask to be a CA")
		case id != oidSAN:
			r.check("extensions.ignored", true, id, "requested extensions are ignored: the profile says what a certificate has")
		}
	}
}

// maxTime bounds the times of facts, in seconds: certificates end before the year
// 10000 (RFC 5280, section 4.1.2.5).
const maxTime = 253402300799 - int64(maxAge/time.Second)

func plausible(times ...int64) bool {
	return !slices.ContainsFunc(times, func(t int64) bool { return t < 0 || t > maxTime })
}

func rfc3339(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

// renewal looks at what only a renewal has to meet.
func (r *run) renewal() {
	f, rule := r.f.Renewal, r.c.Renewal
	if f == nil {
		return
	}
	r.check("renewal", rule.Allowed, r.f.Kind, "the profile does not allow renewals: enroll again with a new challenge")
	r.check("renewal.names", f.SameNames == 1, itoa(f.SameNames)+" (1: the same)", "a renewal has to have the names of the certificate that it renews")
	if !plausible(f.NotBefore, f.NotAfter, f.LineageStart, r.f.Now) {
		r.check("renewal.times", false, "", "the times of a renewal have to be plausible")
		return
	}
	r.check("renewal.expired", r.f.Now <= f.NotAfter, rfc3339(f.NotAfter), "a renewal has to come before the certificate ends: enroll again with a new challenge")
	if !rule.Allowed {
		return
	}
	opens := rule.Window.Opens(time.Unix(f.NotBefore, 0), time.Unix(f.NotAfter, 0)).Unix()
	r.check("renewal.window", r.f.Now >= opens, rfc3339(r.f.Now), "a renewal of this certificate is allowed from "+rfc3339(opens))
	r.check("renewal.max_count", f.Count < int64(rule.MaxCount), itoa(f.Count),
		"a certificate may be renewed "+itoa(rule.MaxCount)+" times at most: enroll again with a new challenge")
	if rule.NewKey == "required" {
		r.check("renewal.new_key", f.SameKey == 0, itoa(f.SameKey)+" (1: the same)", "a renewal has to have a new key")
	}
}

// limits looks at how much was issued.
func (r *run) limits() {
	l := r.c.Limits
	r.check("limits.active_per_subject", r.f.ActiveForSubject < int64(l.ActivePerSubject), itoa(r.f.ActiveForSubject),
		"a subject may have "+itoa(l.ActivePerSubject)+" living certificates at most")
	if l.PerMinute > 0 {
		r.check("limits.per_minute", r.f.IssuedLastMinute < int64(l.PerMinute), itoa(r.f.IssuedLastMinute),
			"the profile issues "+itoa(l.PerMinute)+" certificates a minute at most: try again")
	}
}

// validity returns the certificate's life: For from Backdate ago, cut at the end
// of the lineage.
func (r *run) validity() built {
	seconds := func(d time.Duration) int64 { return int64(d / time.Second) }
	if !plausible(r.f.Now) || r.f.Now < seconds(maxBackdate) {
		r.check("validity", false, itoa(r.f.Now), "the time has to be plausible")
		return built{}
	}
	v := r.c.Validity
	from := r.f.Now - seconds(v.Backdate)
	to := from + seconds(v.For)
	if age := seconds(r.c.Renewal.MaxAge); age > 0 {
		start := r.f.Now
		if r.f.Renewal != nil && plausible(r.f.Renewal.LineageStart) {
			start = min(start, r.f.Renewal.LineageStart)
		}
		to = min(to, start+age)
		r.check("renewal.max_age", to > r.f.Now, rfc3339(start), "nothing is left of the "+sayDuration(r.c.Renewal.MaxAge)+
			" that a certificate and its renewals may live: enroll again with a new challenge")
	}
	r.check("validity.for", true, rfc3339(from)+" to "+rfc3339(to), "a certificate lives "+sayDuration(v.For)+" at most")
	return built{notBefore: time.Unix(from, 0).UTC(), notAfter: time.Unix(to, 0).UTC()}
}
