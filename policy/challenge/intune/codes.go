package intune

// reasons say what each code of a refusal means, and what to look at.
var reasons = map[string]string{
	"Unknown":                                "Intune could not validate the request and does not say why",
	"CertificateRequestDecodingFailed":       "Intune could not read the certificate request",
	"ChallengePasswordMissing":               "the request has no challenge: the device did not get the URL from Intune's SCEP profile",
	"ChallengeDeserializationError":          "the challenge is not one that Intune made",
	"ChallengeDecryptionError":               "the challenge was not made for this tenant",
	"ChallengeDecodingError":                 "the challenge was cut or changed on its way",
	"ChallengeInvalidTimestamp":              "the challenge carries a time that makes no sense",
	"ChallengeExpired":                       "the challenge is over: the device was away for longer than its life, and Intune sends the profile again",
	"SubjectNameMissing":                     "the request has no subject, and the SCEP profile asks for one",
	"SubjectNameMismatch":                    "the subject is not the one that the SCEP profile gives this device",
	"SubjectAltNameMissing":                  "the request lacks the alternative names of the SCEP profile",
	"SubjectAltNameMismatch":                 "the alternative names are not those that the SCEP profile gives this device",
	"KeyUsageMismatch":                       "the key usage is not the SCEP profile's",
	"KeyLengthMismatch":                      "the key is not of the length that the SCEP profile asks for",
	"EnhancedKeyUsageMissing":                "the request lacks the extended key usage of the SCEP profile",
	"EnhancedKeyUsageMismatch":               "the extended key usage is not the SCEP profile's",
	"AadKeyIdentifierListMissing":            "the challenge names no key of the device that Entra knows",
	"RegisteredKeyMismatch":                  "the request was not signed by the key that the device registered",
	"SigningCertThumbprintMismatch":          "the challenge was signed by another certificate than the tenant's",
	"ScepProfileNoLongerTargetedToTheClient": "the SCEP profile is assigned to the device no more",
	"SignatureValidationFailed":              "the signature of the challenge is bad: somebody changed it",
	"BadCertificateRequestIdInChallenge":     "the challenge belongs to another certificate request",
	"BadDeviceIdInChallenge":                 "the challenge belongs to a device that Intune does not know",
	"BadUserIdInChallenge":                   "the challenge belongs to a user that Intune does not know",
}

// Reason returns a sentence on the code of a refusal.
func Reason(code string) string {
	if r, ok := reasons[code]; ok {
		return r
	}
	return "a code that is new to this version: Intune's documentation may have it"
}
