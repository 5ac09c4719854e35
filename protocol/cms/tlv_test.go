package cms_test

import (
	"bytes"
	"encoding/asn1"
	"slices"
	"testing"
)

// A tlv is an element of a message that a test takes apart, changes and puts
// together again. Only the elements of constructed tags are taken apart.
type tlv struct {
	tag   byte
	value []byte
	kids  []*tlv
}

func parseTLV(t testing.TB, der []byte) *tlv {
	t.Helper()
	kids := parseAll(t, bytes.Clone(der)) // changing the parts does not change der
	if len(kids) != 1 {
		t.Fatalf("%d elements, want 1", len(kids))
	}
	return kids[0]
}

func parseAll(t testing.TB, der []byte) (all []*tlv) {
	t.Helper()
	for len(der) > 0 {
		var raw asn1.RawValue
		rest, err := asn1.Unmarshal(der, &raw)
		if err != nil {
			t.Fatal(err)
		}
		n := &tlv{tag: der[0], value: raw.Bytes}
		if raw.IsCompound {
			n.kids, n.value = parseAll(t, raw.Bytes), nil
		}
		all, der = append(all, n), rest
	}
	return all
}

func (n *tlv) at(path ...int) *tlv {
	for _, i := range path {
		n = n.kids[i]
	}
	return n
}

func (n *tlv) add(kids ...*tlv) *tlv { n.kids = append(n.kids, kids...); return n }

func (n *tlv) der() []byte {
	value := n.value
	if n.tag&0x20 != 0 {
		var all [][]byte
		for _, k := range n.kids {
			all = append(all, k.der())
		}
		value = slices.Concat(all...)
	}
	return element(n.tag, value)
}

func element(tag byte, value []byte) []byte {
	out := []byte{tag}
	switch n := len(value); {
	case n < 0x80:
		out = append(out, byte(n))
	case n < 0x100:
		out = append(out, 0x81, byte(n))
	case n < 0x10000:
		out = append(out, 0x82, byte(n>>8), byte(n))
	default:
		out = append(out, 0x83, byte(n>>16), byte(n>>8), byte(n))
	}
	return append(out, value...)
}

// indefinite writes n as BER: indefinite lengths, and strings in segments.
func (n *tlv) indefinite() []byte {
	switch {
	case n.tag == 0x04:
		half := len(n.value) / 2
		return slices.Concat([]byte{0x24, 0x80}, element(4, n.value[:half]), element(4, n.value[half:]), []byte{0, 0})
	case n.tag&0x20 == 0:
		return n.der()
	}
	var b bytes.Buffer
	b.Write([]byte{n.tag, 0x80})
	for _, k := range n.kids {
		b.Write(k.indefinite())
	}
	b.Write([]byte{0, 0})
	return b.Bytes()
}

var null = &tlv{tag: 5}
