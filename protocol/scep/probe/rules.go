package probe

// A rule says what is right about a matter, and where that is written.
type rule struct{ id, says string }

// rules are all matters, in the order in which they are looked at.
var rules = [...]rule{
	{"tls.plain", "the protocol allows plain HTTP, which shows names and lets anybody change capabilities (RFC 8894, 7.5, 7.7, 7.10)"},
	{"tls.trust", "a device has to be able to trust the server's certificate"},
	{"tls.version", "TLS 1.2 with AEAD and ephemeral keys, or 1.3 (RFC 9325)"},
	{"tls.old", "TLS 1.0 and 1.1 are not to be negotiated (RFC 8996)"},
	{"tls.client-certificate", "Windows and macOS fail on a listener that asks for a client certificate"},
	{"tls.lifetime", "Apple takes server certificates of at most 398 days; one that ends soon is in need of renewal"},
	{"caps.answer", "GetCACaps has to be answered (RFC 8894, 2.9, 3.5.2)"},
	{"caps.type", "text/plain without parameters (RFC 8894, 3.5.2)"},
	{"caps.size", "certmonger refuses more than 1024 octets"},
	{"caps.spelling", "keywords are compared as they are written in the table (RFC 8894, 3.5.2)"},
	{"caps.unknown", "other keywords are allowed, with a prefix of their maker's (RFC 8894, 3.5.2)"},
	{"caps.required", "AES, POSTPKIOperation and SHA-256 have to be there, by name: clients look for the names (RFC 8894, 2.9, 3.5.2)"},
	{"caps.weak", "SHA-1 and DES3 are for old clients alone, DES and MD5 for nobody (RFC 8894, 2.9, 7.5, 7.9)"},
	{"caps.renewal", "Renewal says that RenewalReq is honored; strongSwan and Apple look for it (RFC 8894, 3.5.2)"},
	{"ca.answer", "GetCACert has to be answered (RFC 8894, 2.9, 4.2)"},
	{"ca.type", "x-x509-ca-cert for one certificate, x-x509-ca-ra-cert for several, without parameters (RFC 8894, 4.2.1)"},
	{"ca.order", "clients take the first for the RA's: RA certificates, then the CA, then what is above it (RFC 8894, 4.2.1.2)"},
	{"ca.usages", "whom messages are enciphered to says keyEncipherment, who signs replies digitalSignature (RFC 8894, 2.1.2)"},
	{"ca.key", "RSA for the recipient, of 2048 bits at least, and no SHA-1 in the certificates (RFC 8894, 3.1)"},
	{"ca.validity", "all certificates are valid, for a month at least"},
	{"ca.chain", "each RA certificate and each CA is signed by one of the others (RFC 8894, 2.2)"},
	{"ca.root", "Windows looks for the root by its thumbprint; strongSwan wants it too"},
	{"ca.identifier", "an identifier that the server does not know changes nothing for sscep; a number above 0 is another CA or none for certmonger (RFC 8894, 4.2)"},
	{"client.apple", "two RA certificates of disjoint usages or one of both, one root at most, no CA that signs messages"},
	{"client.windows", "RA certificates with usages, and the extended usage serverAuth or Certificate Request Agent; the root"},
	{"client.jscep", "recipient and signer by key usage, directly below the CA; AES and SHA-256 by name"},
	{"client.sscep", "a recipient by key usage; capabilities compared with case; exact types"},
	{"client.strongswan", "SHA-256 or SCEPStandard, AES beside SHA-384 (5.9.8), and the root"},
	{"client.certmonger", "less than 1024 octets of capabilities; the signing RA has no keyEncipherment unless it is the recipient"},
	{"client.micromdm", "without a selector it enciphers to every certificate, which takes RSA in all of them"},
	{"next.caps", "GetNextCACert is listed exactly while it is answered (RFC 8894, 3.5.2, 4.7)"},
	{"next.answer", "signed by the current CA or RA; what is signed holds the next certificates (RFC 8894, 4.7.1)"},
	{"bad.base64", "a message that is no base64 is an error of the client's, not of the server's: 400"},
	{"bad.operation", "an operation that is unknown is an error of the client's: 400"},
	{"bad.truncated", "a message that is cut short is an error of the client's: 400"},
	{"bad.signature", "badMessageCheck (RFC 8894, 3.2.1.4)"},
	{"bad.recipient", "a message for somebody else is refused"},
	{"bad.envelope", "all envelopes that do not hold a request have one answer, else the RA's key can be used by asking (RFC 3218)"},
	{"alg.des", "single DES must not be supported: badAlg (RFC 8894, 2.9, 3.2.1.4)"},
	{"alg.md5", "MD5 must not be supported: badAlg (RFC 8894, 2.9, 3.2.1.4)"},
	{"alg.des3", "triple DES is for old clients alone (RFC 8894, 2.9)"},
	{"alg.sha1", "SHA-1 is for old clients alone (RFC 8894, 2.9, 7.9)"},
	{"alg.strong", "AES-256 and SHA-512 are allowed beside AES-128 and SHA-256 (RFC 8894, 3.5.2)"},
	{"type.unknown", "messageTypes 3, 18 and 99 are no requests: badRequest (RFC 8894, 3.2.1.2)"},
	{"poll.unknown", "a CertPoll without a request is refused (RFC 8894, 4.4)"},
	{"query.getcert", "GetCert is optional; its answer is for the one who asked alone (RFC 8894, 3.3.4, 4.5)"},
	{"query.getcrl", "GetCRL is optional; its answer is for the one who asked alone (RFC 8894, 3.3.4, 4.6)"},
	{"http.get", "a message by GET has the same answer as by POST (RFC 8894, 4.1)"},
	{"http.path", "the path is the server's own affair; clients add pkiclient.exe and others (RFC 8894, 4.1)"},
	{"http.cache", "a GET of a message is not to be kept by a proxy: Cache-Control: no-store (RFC 8894, 4.1)"},
	{"reply.read", "refusals are CertReps: 200 and a CMS message that can be read (RFC 8894, 3.3.2, 4.3.1)"},
	{"reply.type", "application/x-pki-message, without parameters (RFC 8894, 4.3.1)"},
	{"reply.signer", "a certificate of GetCACert signs, and stands in the reply (RFC 8894, 3.3, 3.4)"},
	{"reply.signature", "the signature verifies (RFC 8894, 3.2)"},
	{"reply.digest", "SHA-256 or better, as the request (RFC 8894, 2.9, 7.9)"},
	{"reply.rsa", "strongSwan reads rsaEncryption alone as the signature's algorithm (RFC 3370, 3.2)"},
	{"reply.message-type", "messageType is 3 (RFC 8894, 3.2.1.2)"},
	{"reply.transaction", "the transactionID comes back octet for octet, as the same string type (RFC 8894, 3.2.1.1)"},
	{"reply.recipient-nonce", "it is the nonce of the request (RFC 8894, 3.2.1.5)"},
	{"reply.sender-nonce", "it is there, fresh, and not the client's own (RFC 8894, 3.2.1.5)"},
	{"reply.nonce-size", "16 octets (RFC 8894, 3.2.1.5)"},
	{"reply.status", "what is no request is refused: pkiStatus 2 (RFC 8894, 3.2.1.3)"},
	{"reply.fail-info", "a failure says why, from 0 to 4 (RFC 8894, 3.2.1.4)"},
	{"reply.content", "a failure has no envelope (RFC 8894, 3.3.2.2)"},
	{"reply.strings", "messageType, pkiStatus and failInfo are PrintableStrings (RFC 8894, 3.2.1)"},
	{"reply.words", "failInfoText is for people; a parser's words are for whoever looks for a way in (RFC 8894, 3.2.1.4)"},
}

// says returns what is right about a matter.
func says(id string) string {
	for _, r := range rules {
		if r.id == id {
			return r.says
		}
	}
	return ""
}
