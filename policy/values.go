package policy

import (
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// The units of a duration. A year is 365 days.
const (
	day  = 24 * time.Hour
	year = 365 * day
)

var duration = regexp.MustCompile(`^([1-9][0-9]{0,6})([smhdwy])$`)

// parseDuration reads a number and its unit, such as 30m or 365d.
func parseDuration(s string) (time.Duration, bool) {
	m := duration.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	unit := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": day, "w": 7 * day, "y": year}[m[2]]
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || time.Duration(n) > 200*year/unit {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// duration reads a duration up to high; what is wrong is a fault and 0.
func (l *loader) duration(n *yaml.Node, path string, high time.Duration) time.Duration {
	const want = "a number with a unit: s, m, h, d, w or y, such as 30m or 365d"
	v, ok := l.scalar(n, path, "!!str", want)
	if !ok {
		return 0
	}
	d, ok := parseDuration(v)
	switch {
	case !ok:
		l.fault(n, path, "%q has to be %s", v, want)
	case d > high:
		l.fault(n, path, "%s is more than the most that is allowed, %s", v, sayDuration(high))
	default:
		return d
	}
	return 0
}

// sayDuration writes a duration in the largest unit that fits.
func sayDuration(d time.Duration) string {
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"y", year}, {"d", day}, {"h", time.Hour}, {"m", time.Minute}} {
		if d >= u.unit && d%u.unit == 0 {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(d/time.Second), 10) + "s"
}

// Nearest returns the word that needs the fewest edits to become v, without
// regard to case, or "" if none is near.
func Nearest(v string, words []string) string {
	best, least := "", max(len(v)/2, 2)+1
	if len(v) > 64 {
		return ""
	}
	for _, w := range words {
		if d := distance(lower(v), lower(w)); d < least || d == least && best == "" && strings.HasPrefix(lower(v), lower(w)) {
			best, least = w, d
		}
	}
	return best
}

// distance is Levenshtein's, over octets.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// valueFault says what is wrong with a value of a subject attribute whatever the
// profile says, and under which rule: "characters" or "length".
func valueFault(t attributeType, v string) (rule, say string) {
	switch {
	case v == "":
		return "characters", t.name + " may not be empty"
	case !printableText(v):
		return "characters", t.name + " may have printable characters alone, and no space at either end"
	case len(v) > t.max:
		return "length", t.name + " may have " + strconv.Itoa(t.max) + " octets at most"
	case t.name == "C" && !country.MatchString(v):
		return "characters", "C has to be two capital letters"
	case t.form == printable && !printableString.MatchString(v):
		return "characters", t.name + " may have letters, digits, spaces and '()+,-./:=? alone"
	case t.form == ia5 && !ascii(v):
		return "characters", t.name + " may have ASCII characters alone"
	}
	return "", ""
}

var (
	country         = regexp.MustCompile(`\A[A-Z]{2}\z`)
	printableString = regexp.MustCompile(`\A[A-Za-z0-9 '()+,\-./:=?]*\z`) // X.680, 41.4
	hostname        = regexp.MustCompile(`\A(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\z`)
	allDigits       = regexp.MustCompile(`(?:\A|\.)[0-9]+\z`)
	mailbox         = regexp.MustCompile("\\A[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@")
)

// printableText refuses what a person would not see or not tell apart when it is
// printed: control and format characters, all spaces but the plain one, octets
// that are not UTF-8, and spaces at the ends.
func printableText(v string) bool {
	if !utf8.ValidString(v) || strings.HasPrefix(v, " ") || strings.HasSuffix(v, " ") {
		return false
	}
	return strings.IndexFunc(v, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }) < 0
}

func ascii(v string) bool {
	return strings.IndexFunc(v, func(r rune) bool { return r > unicode.MaxASCII }) < 0
}

// sanFault says what is wrong with a subjectAltName of that kind whatever the
// profile says, or "" (RFC 5280, section 4.2.1.6).
func sanFault(kind, v string) string {
	if v == "" || !printableText(v) || !ascii(v) || strings.Contains(v, " ") {
		return "may have printable ASCII characters alone, and no spaces"
	}
	switch kind {
	case "dns":
		if len(v) > 253 || !hostname.MatchString(v) || allDigits.MatchString(v) {
			return "has to be a host name: no wildcard, no dot at the end, no address"
		}
	case "ip":
		a, err := netip.ParseAddr(v)
		if err != nil || a.String() != v || a.Zone() != "" || a.Is4In6() {
			return "has to be an address in its shortest form"
		}
	case "email":
		_, host, _ := strings.Cut(v, "@")
		if len(v) > 254 || !mailbox.MatchString(v) || !hostname.MatchString(host) || allDigits.MatchString(host) {
			return "has to be a mailbox, local part and host name"
		}
	case "uri":
		u, err := url.Parse(v)
		if err != nil || len(v) > 512 || !u.IsAbs() || u.User != nil || u.String() != v {
			return "has to be an absolute URI of 512 octets at most, without a user"
		}
	}
	return ""
}
