package policy

// CACertificates says how a profile's devices are given the certificates of its CA.
// Its zero value has the RA first, and the root.
type CACertificates struct {
	CAFirst bool // the CA before the RA
	NoRoot  bool // without the root, where that is not the CA itself
}

// Reply says what an answer to a request has beside what every client needs. Its
// zero value has the issued certificate alone, and words in a refusal.
type Reply struct {
	Chain          bool // the CA's certificates after the issued one
	NoFailInfoText bool // no failInfoText
}

// answers reads what a profile says of the form of its answers.
func (l *loader) answers(c *compiled, s section) {
	if n := s.get("ca_certificates"); n != nil {
		m := l.mapping(n, s.at("ca_certificates"), keys{may: []string{"order", "root"}})
		if n := m.get("order"); n != nil {
			c.CACertificates.CAFirst = l.choice(n, m.at("order"), nil, "ra-first", "ca-first") == "ca-first"
		}
		if n := m.get("root"); n != nil {
			c.CACertificates.NoRoot = l.choice(n, m.at("root"), nil, "include", "exclude") == "exclude"
		}
	}
	if n := s.get("reply"); n != nil {
		m := l.mapping(n, s.at("reply"), keys{may: []string{"chain", "fail_info_text"}})
		c.Reply.Chain = m.get("chain") != nil && l.boolean(m.get("chain"), m.at("chain"))
		c.Reply.NoFailInfoText = m.get("fail_info_text") != nil && !l.boolean(m.get("fail_info_text"), m.at("fail_info_text"))
	}
}
