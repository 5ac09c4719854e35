package scep_test

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"strings"
	"testing"

	"github.com/postern-pki/postern/protocol/cms"
	"github.com/postern-pki/postern/protocol/scep"
)

// Covers: S-055, S-063, S-075
func TestParseMessage(t *testing.T) {
	id := func(tag int, s string) []cms.Attribute {
		return []cms.Attribute{{Type: scep.OIDTransactionID, Value: der(tag, []byte(s))}, messageType("17"), nonce}
	}
	withNonce := func(tag, n int) []cms.Attribute {
		return []cms.Attribute{transaction, messageType("19"), {Type: scep.OIDSenderNonce, Value: der(tag, make([]byte, n))}}
	}
	good := map[string][]cms.Attribute{
		"printable":    id(asn1.TagPrintableString, "abc_1@x *"),
		"UTF-8":        id(asn1.TagUTF8String, "éü"),
		"IA5":          id(asn1.TagIA5String, "a"),
		"visible":      id(26, "a"),
		"longest":      id(asn1.TagPrintableString, strings.Repeat("a", 512)),
		"unknown":      append([]cms.Attribute{{Type: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{0xff}}}, id(asn1.TagPrintableString, "a")...),
		"nonce of 1":   withNonce(asn1.TagOctetString, 1),
		"nonce of 64":  withNonce(asn1.TagOctetString, 64),
		"type in UTF8": {transaction, {Type: scep.OIDMessageType, Value: der(asn1.TagUTF8String, []byte("19"))}, nonce},
	}
	for name, attrs := range good {
		m, err := scep.ParseMessage(attrs)
		if err != nil || (m.Type != 17 && m.Type != 19) || m.TransactionID == "" || !bytes.HasSuffix(m.RawTransactionID, []byte(m.TransactionID)) || len(m.SenderNonce) == 0 {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	bad := map[string][]cms.Attribute{
		"none":            nil,
		"empty":           id(asn1.TagPrintableString, ""),
		"too long":        id(asn1.TagPrintableString, strings.Repeat("a", 513)),
		"not ASCII":       id(asn1.TagPrintableString, "é"),
		"not UTF-8":       id(asn1.TagUTF8String, "\xff"),
		"octets":          id(asn1.TagOctetString, "abc"),
		"BMP":             id(asn1.TagBMPString, "ab"),
		"trailing":        {{Type: scep.OIDTransactionID, Value: append(der(19, []byte("a")), 0)}, messageType("19"), nonce},
		"no value":        {{Type: scep.OIDTransactionID}, messageType("19"), nonce},
		"nonce of 0":      withNonce(asn1.TagOctetString, 0),
		"nonce of 65":     withNonce(asn1.TagOctetString, 65),
		"nonce is text":   withNonce(asn1.TagPrintableString, 16),
		"nonce is absent": {transaction, messageType("19")},
	}
	for name, attrs := range bad {
		if m, err := scep.ParseMessage(attrs); !errors.Is(err, scep.ErrAttributes) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	for _, s := range []string{"", "019", "+1", "-1", " 1", "1 ", "0x11", "1e1", "2147483648", "é"} {
		m, err := scep.ParseMessage([]cms.Attribute{transaction, messageType(s), nonce})
		if !errors.Is(err, scep.ErrMessageType) || m.TransactionID == "" || m.Type != 0 {
			t.Errorf("type %q: %+v, %v", s, m, err)
		}
	}
}
