package scep

import (
	"encoding/base64"
	"strings"

	"github.com/postern-pki/postern/protocol"
)

// maxQueryMessage bounds the message in a GET as it stands in the query, in
// octets; with the header's own bound of 64 KiB it can be reached.
const maxQueryMessage = 48 << 10

// query is the part of a URL's query that SCEP knows, not decoded.
type query struct {
	operation string
	message   string
}

// parseQuery takes a raw query apart (RFC 8894, section 4.1). It does not use
// net/url, which makes the plus signs of base64 spaces and drops what has a
// semicolon. It fails if a parameter of ours stands twice: proxies differ in
// which one they look at.
func parseQuery(raw string) (q query, ok bool) {
	var operations, messages int
	for pair := range strings.SplitSeq(raw, "&") {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "operation":
			q.operation = value
			operations++
		case "message":
			q.message = value
			messages++
		}
	}
	return q, operations <= 1 && messages <= 1
}

// decodeMessage reads the message of a GET: base64, then percent-escaped (RFC
// 8894, section 4.1). Clients escape more or less than that: some leave "+" as it
// is and some proxies make it a space, some break lines, some use the URL-safe
// alphabet, some escape twice. All of these have one reading, as "%" is none of
// base64's characters; no path is read so. The traits say what was odd.
func decodeMessage(raw string) (out []byte, odd protocol.Traits, ok bool) {
	text, ok := unescape(raw)
	if !ok {
		return nil, 0, false
	}
	if strings.Contains(raw, "+") {
		odd |= protocol.TraitRawPlus
	}
	if strings.Contains(text, "%") {
		odd |= protocol.TraitEscapedTwice
		if text, ok = unescape(text); !ok {
			return nil, odd, false
		}
	}
	for _, c := range []struct {
		chars string
		trait protocol.Traits
	}{{" ", protocol.TraitSpace}, {"\r\n", protocol.TraitLines}, {"-_", protocol.TraitURLAlphabet}} {
		if strings.ContainsAny(text, c.chars) {
			odd |= c.trait
		}
	}
	encoded := strings.NewReplacer(" ", "+", "\r", "", "\n", "", "-", "+", "_", "/").Replace(text)
	bare := strings.TrimSuffix(strings.TrimSuffix(encoded, "="), "=")
	if len(encoded)%4 != 0 {
		odd |= protocol.TraitUnpadded
	}
	out, err := base64.RawStdEncoding.DecodeString(bare)
	return out, odd, err == nil && len(out) > 0
}

// unescape undoes percent-escapes once and leaves "+" alone.
func unescape(s string) (string, bool) {
	var b strings.Builder
	b.Grow(len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if len(s)-i < 3 {
			return "", false
		}
		high, ok1 := hexDigit(s[i+1])
		low, ok2 := hexDigit(s[i+2])
		if !ok1 || !ok2 {
			return "", false
		}
		b.WriteByte(high<<4 | low)
		i += 2
	}
	return b.String(), true
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	default:
		return 0, false
	}
}

// positive reports whether s is a whole number above zero, of any length.
func positive(s string) bool {
	return strings.Trim(s, "0123456789") == "" && strings.Trim(s, "0") != ""
}
