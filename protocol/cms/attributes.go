package cms

import (
	"bytes"
	"encoding/asn1"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// attributes are parsed signed attributes.
type attributes struct {
	list          []Attribute
	raw           [][]byte // each whole Attribute, in order
	messageDigest []byte
}

// ParseAttributes reads signed attributes, DER of a SET OF with tag 0x31: each
// type at most once and with exactly one value, a contentType of id-data, and a
// messageDigest. The result keeps references to signedAttrs.
func ParseAttributes(signedAttrs []byte) ([]Attribute, error) {
	a, err := readAttributes(signedAttrs)
	if err != nil {
		return nil, err
	}
	return a.list, nil
}

// ListAttributes reads attributes as [ParseAttributes] does, also where they do not
// fit a content: so that a message that nobody can verify can be answered.
func ListAttributes(signedAttrs []byte) ([]Attribute, error) {
	a, err := listAttributes(signedAttrs)
	if err != nil {
		return nil, err
	}
	return a.list, nil
}

func listAttributes(signedAttrs []byte) (*attributes, error) {
	in := cryptobyte.String(signedAttrs)
	var set cryptobyte.String
	if !in.ReadASN1(&set, cbasn1.SET) {
		return nil, malformed("signed attributes")
	}
	if !in.Empty() {
		return nil, trailing("signed attributes")
	}
	a := &attributes{}
	for !set.Empty() {
		if len(a.list) == maxAttributes {
			return nil, fmt.Errorf("%w: signed attributes", ErrTooMany)
		}
		one, raw, err := readAttribute(&set)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(a.list, func(b Attribute) bool { return b.Type.Equal(one.Type) }) {
			return nil, malformed("duplicate attribute")
		}
		a.list, a.raw = append(a.list, one), append(a.raw, raw)
	}
	return a, nil
}

func readAttributes(signedAttrs []byte) (*attributes, error) {
	a, err := listAttributes(signedAttrs)
	if err != nil {
		return nil, err
	}
	contentType := false
	for _, one := range a.list {
		value := cryptobyte.String(one.Value)
		switch {
		case one.Type.Equal(oidContentType):
			var kind asn1.ObjectIdentifier
			if !value.ReadASN1ObjectIdentifier(&kind) || !kind.Equal(oidData) {
				return nil, malformed("contentType attribute")
			}
			contentType = true
		case one.Type.Equal(oidMessageDigest):
			if !value.ReadASN1((*cryptobyte.String)(&a.messageDigest), cbasn1.OCTET_STRING) || len(a.messageDigest) == 0 {
				return nil, malformed("messageDigest attribute")
			}
		}
	}
	if !contentType || a.messageDigest == nil {
		return nil, malformed("contentType or messageDigest attribute is missing")
	}
	return a, nil
}

// readAttribute reads an Attribute with one value.
func readAttribute(s *cryptobyte.String) (a Attribute, raw []byte, err error) {
	var element, body, values, value cryptobyte.String
	var tag cbasn1.Tag
	if !s.ReadASN1Element(&element, cbasn1.SEQUENCE) {
		return a, nil, malformed("attribute")
	}
	raw = element
	if !element.ReadASN1(&body, cbasn1.SEQUENCE) || !body.ReadASN1ObjectIdentifier(&a.Type) ||
		!body.ReadASN1(&values, cbasn1.SET) || !values.ReadAnyASN1Element(&value, &tag) {
		return a, nil, malformed("attribute")
	}
	if !body.Empty() {
		return a, nil, trailing("attribute")
	}
	if !values.Empty() {
		return a, nil, malformed("attribute of several values")
	}
	a.Value = value
	return a, raw, nil
}

// sorted returns the attributes as the DER of a SET OF (X.690, section 11.6), or
// nil if that is how they were received.
func (a *attributes) sorted() []byte {
	if slices.IsSortedFunc(a.raw, bytes.Compare) {
		return nil
	}
	sorted := slices.SortedFunc(slices.Values(a.raw), bytes.Compare)
	n := 0
	for _, one := range sorted {
		n += len(one)
	}
	out := appendHeader(make([]byte, 0, headerSize(n)+n), byte(cbasn1.SET), n)
	for _, one := range sorted {
		out = append(out, one...)
	}
	return out
}
