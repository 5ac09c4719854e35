package lint_test

import (
	"encoding/asn1"
	"slices"
	"testing"

	"github.com/postern-pki/postern/hsm/lint"
)

// Whoever holds the CA's key has no list of what policy allows, and still signs
// nothing that has power over others.
func TestNoExtendedUsageGivesPowerOverOthers(t *testing.T) {
	tbs, _ := good(t, newKey(t))
	for oid, power := range map[string]bool{
		"1.3.6.1.5.5.7.3.1": false, "1.3.6.1.5.5.7.3.2": false, "1.3.6.1.5.5.7.3.17": false, "1.3.6.1.5.5.7.3.30": false,
		"1.3.6.1.4.1.311.200": false, "1.3.6.1.5.5.7.3.37": false,
		"2.5.29.37.0": true, "1.3.6.1.5.5.7.3.3": true, "1.3.6.1.5.5.7.3.8": true, "1.3.6.1.5.5.7.3.9": true,
		"1.3.6.1.5.5.7.3.26": true, "1.3.6.1.5.5.7.3.27": true, "1.3.6.1.5.5.7.3.28": true,
		"1.3.6.1.5.2.3.4": true, "1.3.6.1.5.2.3.5": true,
		"1.3.6.1.4.1.311.20.2.1": true, "1.3.6.1.4.1.311.20.2.2": true, "1.3.6.1.4.1.311.10.3.1": true, "1.3.6.1.4.1.311.21.5": true,
		"1.2.840.113635.100.4.1": true,
	} {
		c, err := lint.Parse(tbs)
		if err != nil {
			t.Fatal(err)
		}
		value, err := asn1.Marshal([]asn1.ObjectIdentifier{parse(t, oid)})
		if err != nil {
			t.Fatal(err)
		}
		ext(c, 37).Value = value
		found := lint.Check(encode(c), lint.Rules{})
		got := slices.ContainsFunc(found, func(f lint.Finding) bool { return f.Rule == "extended-key-usage" })
		if got != power || !power && len(found) > 0 {
			t.Errorf("%s: %v", oid, found)
		}
	}
}

// A certificate that names no usage is good for every one, so that it is no
// matter of style to leave them out.
func TestUsagesCanNotBeExcepted(t *testing.T) {
	tbs, _ := good(t, newKey(t))
	for id, rule := range map[int]string{15: "key-usage-present", 37: "extended-key-usage-present"} {
		c, err := lint.Parse(tbs)
		if err != nil {
			t.Fatal(err)
		}
		c.Extensions = slices.DeleteFunc(c.Extensions, func(e lint.Extension) bool { return e.ID.Equal(asn1.ObjectIdentifier{2, 5, 29, id}) })
		found := lint.Check(encode(c), lint.Rules{Except: lint.All()})
		if lint.Excusable(rule) || len(found) != 1 || found[0].Rule != rule {
			t.Errorf("without extension %d: %v", id, found)
		}
	}
}

func parse(t *testing.T, dotted string) asn1.ObjectIdentifier {
	t.Helper()
	var oid asn1.ObjectIdentifier
	n := 0
	for _, c := range dotted + "." {
		if c == '.' {
			oid, n = append(oid, n), 0
			continue
		}
		n = 10*n + int(c-'0')
	}
	return oid
}
