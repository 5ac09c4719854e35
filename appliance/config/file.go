package config

// File is postern.yaml as a person writes it. Durations are Go's, with d for
// days; paths are absolute or relative to the file's own folder.
type File struct {
	Version    int         `yaml:"version"`
	State      string      `yaml:"state"`
	Origin     string      `yaml:"origin"`
	Transcript string      `yaml:"transcript"`
	Profiles   []string    `yaml:"profiles"`
	Token      Token       `yaml:"token"`  // the only one
	Tokens     []Token     `yaml:"tokens"` // or several, with names
	Keys       []Key       `yaml:"keys"`
	Issuers    []Issuer    `yaml:"issuers"`
	Audit      Audit       `yaml:"audit"`
	Keyholder  Keyholder   `yaml:"keyholder"`
	Links      Links       `yaml:"links"`
	Courier    Courier     `yaml:"courier"`
	Challenges Challenges  `yaml:"challenges"`
	Validators []Validator `yaml:"validators"`
	Devices    Devices     `yaml:"devices"`
	Operators  Operators   `yaml:"operators"`
	TLS        TLS         `yaml:"tls"`
}

// Token names the PKCS#11 module and the token in it, by serial (preferred) or
// label.
type Token struct {
	Name         string `yaml:"name"` // what keys call it; needed in a list
	Module       string `yaml:"module"`
	Serial       string `yaml:"serial"`
	Label        string `yaml:"label"`
	PIN          Secret `yaml:"pin"`
	Sessions     int    `yaml:"sessions"`      // 0: two for each core
	Deadline     string `yaml:"deadline"`      // of one operation; default 5s
	SoftHSM2Conf string `yaml:"softhsm2_conf"` // SoftHSM reads its configuration's path from the environment

	Sandbox Sandbox `yaml:"sandbox"`
}

// Sandbox is what a module needs beyond what is known of it: the keyholder is bound
// to it before the module is loaded.
type Sandbox struct {
	Read    []string `yaml:"read"`    // files and folders
	Write   []string `yaml:"write"`   // files, folders and devices; what is written may be read
	Connect []string `yaml:"connect"` // Unix sockets
	Network bool     `yaml:"network"` // TCP and UDP, for a network HSM
	Exec    bool     `yaml:"exec"`    // it starts programs
}

// Secret says where a secret is, never what it is: a file of mode 0600 or
// stricter, or a systemd credential.
type Secret struct {
	File       string `yaml:"file"`
	Credential string `yaml:"credential"`
}

// Key is one key on a token. Purpose is ca, ra-sign, ra-decrypt, ra, tls, audit
// or ocsp.
type Key struct {
	Name    string `yaml:"name"`
	Purpose string `yaml:"purpose"`
	Token   string `yaml:"token"` // its name; "": the only one
	Label   string `yaml:"label"`
	ID      string `yaml:"id"`   // CKA_ID, hex; "" finds by label alone
	SPKI    string `yaml:"spki"` // hex SHA-256 of the public key, from the ceremony
	// Algorithm is the ceremony's word for kind and size, such as P-256; "" for any.
	Algorithm string `yaml:"algorithm"`
	// Attributes are what the token tells of the past of a key that the maker's tool
	// copied to it, by name, as the transcript of the copy has them; none for others.
	Attributes map[string]string `yaml:"attributes"`
}

// KeyCert is a key's name and the file of its certificate.
type KeyCert struct {
	Key         string `yaml:"key"`
	Certificate string `yaml:"certificate"`
}

// Issuer is what profiles name: one CA with its two RA keys, or several generations
// of them. The first one, in the issuer itself or in the list, is the current one
// until an operator switches.
type Issuer struct {
	Name        string           `yaml:"name"`
	Certified   `yaml:",inline"` // the first generation, in place of an element of the list
	Generation  string           `yaml:"generation"`   // what that is called; default first
	Generations []Generation     `yaml:"generations"`  // the others, or all
	MaxValidity string           `yaml:"max_validity"` // the key's own limit, whatever a profile says; default 3660d
	CRL         CRL              `yaml:"crl"`
}

// CRL says when a CA's list of revoked certificates is signed, beside at each
// revocation, and how long it is good.
type CRL struct {
	Every    string `yaml:"every"`    // default 1h
	Validity string `yaml:"validity"` // default 7d
}

// OCSP is the key that answers for a CA's certificates, and its certificate.
type OCSP struct {
	Key         string `yaml:"key"`
	Certificate string `yaml:"certificate"`
	Validity    string `yaml:"validity"` // of an answer; default 1d
}

// Generation is one CA of an issuer.
type Generation struct {
	Name      string `yaml:"name"`
	Certified `yaml:",inline"`
}

// Certified is a CA with its certificates and those of its RA.
type Certified struct {
	CA        KeyCert  `yaml:"ca"`
	Chain     []string `yaml:"chain"` // certificates above the CA, root last
	RASign    KeyCert  `yaml:"ra_sign"`
	RADecrypt KeyCert  `yaml:"ra_decrypt"`
	OCSP      OCSP     `yaml:"ocsp"` // none: the CA's certificates have CRLs alone
}

// SingleRA reports whether one key, of purpose ra, both signs answers and opens envelopes.
func (c Certified) SingleRA() bool { return c.RASign.Key != "" && c.RASign.Key == c.RADecrypt.Key }

// Audit configures the log.
type Audit struct {
	Key             string `yaml:"key"`
	Certificate     string `yaml:"certificate"`
	CheckpointEvery string `yaml:"checkpoint_every"` // default 60s
}

// Keyholder is what the role with the token keeps and allows by itself.
type Keyholder struct {
	State        string `yaml:"state"`          // its folder; default: keyholder, beside the authority's
	MarkEvery    string `yaml:"mark_every"`     // how often the newest checkpoint is kept on the token; default 10m, on SoftHSM 1m
	MaxPerSecond int    `yaml:"max_per_second"` // certificates that each CA signs, at most; default 2000
}

// Courier is what the role that asks others over the network keeps by itself.
type Courier struct {
	State string `yaml:"state"` // its folder; default: courier, beside the authority's
}

// Links are how the roles find each other where each is a service of its own: the
// folder of their sockets, and the users of those that call.
type Links struct {
	Folder    string `yaml:"folder"`    // default /run/postern
	Authority string `yaml:"authority"` // default postern-authority
	Devices   string `yaml:"devices"`   // default postern-devices
	Operators string `yaml:"operators"` // default postern-operators
}

// Challenges names the 32-byte key of the challenges' HMAC tags.
type Challenges struct {
	Key Secret `yaml:"key"`
}

// Devices is the listener for devices. URL is what devices are told.
type Devices struct {
	Listen         string `yaml:"listen"`
	URL            string `yaml:"url"`
	ConnsPerSource int    `yaml:"connections_per_source"` // default 128
	MaxConns       int    `yaml:"connections"`            // default 2048
	// BrokenPerMinute is how many envelopes a source may get wrong before it has to
	// wait; default 60. Raise it for devices behind one address.
	BrokenPerMinute int `yaml:"broken_per_minute"`
	Handshakes      int `yaml:"handshakes_per_source"` // in a second; default 50
	// DefaultProfile is the profile of paths that name none, such as
	// /cgi-bin/pkiclient.exe and /certsrv/mscep/mscep.dll; "": they are not found.
	DefaultProfile string `yaml:"default_profile"`
}

// Operators is the API's local socket, and its listener, which wants a client
// certificate of the operator CA; a socket that was inherited needs CA too.
type Operators struct {
	Socket    string          `yaml:"socket"`
	Listen    string          `yaml:"listen"` // "" for none
	CA        string          `yaml:"ca"`
	People    []Operator      `yaml:"people"`
	Local     []LocalOperator `yaml:"local"`      // default: root and the service's own user are administrators
	TwoPerson []string        `yaml:"two_person"` // acts that need two of people
}

// TLS says where the listeners' certificate comes from: internal, files or acme.
type TLS struct {
	Mode        string   `yaml:"mode"`
	Names       []string `yaml:"names"`       // DNS names and addresses
	Key         string   `yaml:"key"`         // internal: a key's name
	KeyFile     string   `yaml:"key_file"`    // internal, in place of key: a software key, PEM of mode 0600
	Issuer      string   `yaml:"issuer"`      // internal
	Validity    string   `yaml:"validity"`    // internal; default 90d
	Certificate string   `yaml:"certificate"` // files: PEM; internal: the ceremony's, to begin with
	PrivateKey  string   `yaml:"private_key"` // files: PEM of mode 0600
	Directory   string   `yaml:"directory"`   // acme: the directory's URL
	Roots       string   `yaml:"roots"`       // acme: PEM, the roots that the directory is known by
	Email       string   `yaml:"email"`       // acme: of the account
}
