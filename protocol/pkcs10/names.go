package pkcs10

import (
	"encoding/asn1"
	"encoding/binary"
	"net/netip"
	"unicode/utf16"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// readName reads a Name (RFC 5280, section 4.1.2.4).
func readName(der cryptobyte.String) ([]Name, error) {
	var rdns cryptobyte.String
	if !der.ReadASN1(&rdns, cbasn1.SEQUENCE) || !der.Empty() {
		return nil, malformed("subject")
	}
	var names []Name
	for !rdns.Empty() {
		var rdn cryptobyte.String
		if !rdns.ReadASN1(&rdn, cbasn1.SET) || rdn.Empty() {
			return nil, malformed("relative distinguished name")
		}
		first := len(names)
		for !rdn.Empty() {
			if len(names) == maxNames {
				return nil, tooMany("attributes of the subject")
			}
			n, err := readAttributeValue(&rdn)
			if err != nil {
				return nil, err
			}
			names = append(names, n)
		}
		for i := first; i < len(names) && len(names)-first > 1; i++ {
			names[i].Multi = true
		}
	}
	return names, nil
}

// readAttributeValue reads an AttributeTypeAndValue whose value is a string.
func readAttributeValue(s *cryptobyte.String) (n Name, err error) {
	var pair, content cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadASN1(&pair, cbasn1.SEQUENCE) || !pair.ReadASN1ObjectIdentifier(&n.Type) || !pair.ReadAnyASN1(&content, &tag) {
		return n, malformed("attribute of the subject")
	}
	if !pair.Empty() {
		return n, trailing("an attribute of the subject")
	}
	n.Value, err = decodeString(tag, content)
	return n, err
}

// decodeString returns the value of an ASN.1 string as UTF-8. Which characters a
// PrintableString may have is not looked at: many clients put @ and _ there.
// TeletexString is read as Latin-1, as all do.
func decodeString(tag cbasn1.Tag, content []byte) (string, error) {
	switch tag {
	case cbasn1.UTF8String, cbasn1.PrintableString, cbasn1.IA5String, tagVisible, tagNumeric:
		if !utf8.Valid(content) {
			return "", malformed("string is not UTF-8")
		}
		return string(content), nil
	case cbasn1.T61String:
		runes := make([]rune, len(content))
		for i, b := range content {
			runes[i] = rune(b)
		}
		return string(runes), nil
	case tagBMP:
		return decodeBMP(content)
	case tagUniversal:
		return decodeUniversal(content)
	default:
		return "", malformed("value is not a string")
	}
}

// decodeBMP reads big-endian UTF-16. Pairs of surrogates are beyond X.680, but
// Windows writes them; half of one is refused.
func decodeBMP(b []byte) (string, error) {
	if len(b)%2 != 0 {
		return "", malformed("length of a BMPString")
	}
	out := make([]byte, 0, len(b))
	for ; len(b) > 0; b = b[2:] {
		r := rune(binary.BigEndian.Uint16(b))
		if utf16.IsSurrogate(r) {
			if len(b) < 4 {
				return "", malformed("surrogate in a BMPString")
			}
			if r = utf16.DecodeRune(r, rune(binary.BigEndian.Uint16(b[2:]))); r == utf8.RuneError {
				return "", malformed("surrogate in a BMPString")
			}
			b = b[2:]
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out), nil
}

// decodeUniversal reads big-endian UTF-32.
func decodeUniversal(b []byte) (string, error) {
	if len(b)%4 != 0 {
		return "", malformed("length of a UniversalString")
	}
	out := make([]byte, 0, len(b))
	for ; len(b) > 0; b = b[4:] {
		v := binary.BigEndian.Uint32(b)
		if v > utf8.MaxRune || !utf8.ValidRune(rune(v)) {
			return "", malformed("character of a UniversalString")
		}
		out = utf8.AppendRune(out, rune(v))
	}
	return string(out), nil
}

// The kinds of a GeneralName that have no field of their own, by their tags (RFC
// 5280, section 4.2.1.6).
const (
	kindOther        = tagContext0C
	kindX400         = tagContext0C | 3
	kindDirectory    = tagContext0C | 4
	kindEDIParty     = tagContext0C | 5
	kindRegisteredID = tagContext | 8
)

// readSANs reads a SubjectAltName.
func (r *Request) readSANs(der cryptobyte.String) error {
	var names cryptobyte.String
	if !der.ReadASN1(&names, cbasn1.SEQUENCE) {
		return malformed("subjectAltName")
	}
	if !der.Empty() {
		return trailing("subjectAltName")
	}
	for n := 0; !names.Empty(); n++ {
		if n == maxSANs {
			return tooMany("names in subjectAltName")
		}
		var content cryptobyte.String
		var tag cbasn1.Tag
		if !names.ReadAnyASN1(&content, &tag) {
			return malformed("name in subjectAltName")
		}
		if err := r.addSAN(tag, content); err != nil {
			return err
		}
	}
	return nil
}

func (r *Request) addSAN(tag cbasn1.Tag, content cryptobyte.String) error {
	var list *[]string
	switch tag {
	case tagContext | 1:
		list = &r.Emails
	case tagContext | 2:
		list = &r.DNSNames
	case tagContext | 6:
		list = &r.URIs
	case tagContext | 7:
		ip, ok := netip.AddrFromSlice(content)
		if !ok {
			return malformed("length of an IP address")
		}
		r.IPs = append(r.IPs, ip)
		return nil
	default:
		kind, err := otherKind(tag, content)
		if err != nil {
			return err
		}
		r.OtherSANs = append(r.OtherSANs, kind)
		return nil
	}
	s, err := decodeString(cbasn1.IA5String, content)
	if err != nil {
		return err
	}
	*list = append(*list, s)
	return nil
}

// otherKind names a GeneralName that only a refusal will mention.
func otherKind(tag cbasn1.Tag, content cryptobyte.String) (string, error) {
	switch tag {
	case kindOther:
		var oid asn1.ObjectIdentifier
		var value cryptobyte.String
		if !content.ReadASN1ObjectIdentifier(&oid) || !content.ReadASN1(&value, tagContext0C) || !content.Empty() {
			return "", malformed("otherName")
		}
		return oid.String(), nil
	case kindX400:
		return "x400Address", nil
	case kindDirectory:
		return "directoryName", nil
	case kindEDIParty:
		return "ediPartyName", nil
	case kindRegisteredID:
		return "registeredID", nil
	default:
		return "", malformed("kind of a name in subjectAltName")
	}
}
