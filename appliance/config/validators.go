package config

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/postern-pki/postern/policy"
)

// Validator is somebody outside who vouches for requests. Its kind is the one section
// that it has beside its name.
type Validator struct {
	Name    string  `yaml:"name"` // what profiles call it
	Webhook Webhook `yaml:"webhook"`
	Intune  Intune  `yaml:"intune"`
}

// Intune is a tenant of Microsoft Intune, and the application in it that may ask.
type Intune struct {
	Tenant      string `yaml:"tenant"`      // a domain or an id
	App         string `yaml:"app"`         // the application's (client) id
	Secret      Secret `yaml:"secret"`      // its secret
	Certificate string `yaml:"certificate"` // or its certificate, PEM, with an RSA key
	PrivateKey  Secret `yaml:"private_key"` // its key, PEM
	Roots       string `yaml:"roots"`       // PEM, who may be Microsoft; default: the system's roots
	Login       string `yaml:"login"`       // of a national cloud; default https://login.microsoftonline.com
	Graph       string `yaml:"graph"`       // default https://graph.microsoft.com
	Resource    string `yaml:"resource"`    // default https://api.manage.microsoft.com/
	Timeout     string `yaml:"timeout"`     // default 12s, at most 15s
}

// Webhook is an operator's own service, asked by step-ca's SCEPCHALLENGE messages.
type Webhook struct {
	URL         string `yaml:"url"`
	ID          string `yaml:"id"`          // X-Smallstep-Webhook-ID; "" for none
	Key         Secret `yaml:"key"`         // of X-Smallstep-Signature, base64
	Bearer      Secret `yaml:"bearer"`      // or none
	User        string `yaml:"user"`        // of Basic authentication
	Password    Secret `yaml:"password"`    // of the user
	Roots       string `yaml:"roots"`       // PEM, the roots that the service is known by
	Certificate string `yaml:"certificate"` // PEM, of a client certificate; "" for none
	PrivateKey  Secret `yaml:"private_key"` // its key, PEM
	Timeout     string `yaml:"timeout"`     // default 10s, at most 15s
}

// LoadedValidator is a [Validator] with what its words mean. Paths are of files that
// only the courier reads; "" where there is none.
type LoadedValidator struct {
	Validator
	Kind         string // "webhook" or "intune"
	KeyPath      string
	SecretPath   string
	BearerPath   string
	PasswordPath string
	Certificate  string
	PrivateKey   string
	Roots        *x509.CertPool // nil: the system's
	Timeout      time.Duration
}

// maxValidators bounds the list.
const maxValidators = 64

var tenantForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$`)

var validatorForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// validators checks who is asked. It comes after the profiles, which name them.
func (l *loader) validators() {
	list := l.c.File.Validators
	if len(list) > maxValidators {
		l.fault("validators", fmt.Sprintf("are at most %d", maxValidators), "")
		return
	}
	var names []string
	for i, v := range list {
		at := fmt.Sprintf("validators[%d]", i)
		if l.need(at+".name", v.Name) {
			if !validatorForm.MatchString(v.Name) {
				l.fault(at+".name", "is up to 63 lowercase letters, digits, - _ and .", "")
			}
			if slices.Contains(names, v.Name) {
				l.fault(at+".name", "is given twice", "")
			}
		}
		names = append(names, v.Name)
		_, hook := l.at[at+".webhook"]
		_, intune := l.at[at+".intune"]
		switch {
		case hook == intune:
			l.fault(at, "is one of webhook and intune", "")
		case hook:
			l.c.Validators = append(l.c.Validators, l.webhook(at+".webhook", v))
		default:
			l.c.Validators = append(l.c.Validators, l.intune(at+".intune", v))
		}
	}
	if l.c.Policies != nil {
		l.named()
	}
}

func (l *loader) webhook(at string, v Validator) LoadedValidator {
	w := v.Webhook
	out := LoadedValidator{Validator: v, Kind: "webhook", Timeout: l.duration(at+".timeout", w.Timeout, 10*time.Second, time.Second, 15*time.Second)}
	if l.need(at+".url", w.URL) {
		u, err := url.Parse(w.URL)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
			l.fault(at+".url", "has to be an https URL without a user, such as https://inventory.corp.example/scep", "")
		}
	}
	out.KeyPath = l.secret(at+".key", w.Key)
	out.BearerPath = l.optional(at+".bearer", w.Bearer)
	out.PasswordPath = l.optional(at+".password", w.Password)
	if (w.User == "") != (out.PasswordPath == "") {
		l.fault(at+".user", "and password belong together", "")
	}
	if w.User != "" && out.BearerPath != "" {
		l.fault(at+".bearer", "is in place of user and password: name one of them", "")
	}
	l.abs(&w.Roots)
	if l.need(at+".roots", w.Roots) {
		out.Roots = l.roots(at+".roots", w.Roots)
	}
	l.abs(&w.Certificate)
	out.Certificate, out.PrivateKey = w.Certificate, l.optional(at+".private_key", w.PrivateKey)
	if (out.Certificate == "") != (out.PrivateKey == "") {
		l.fault(at+".certificate", "and private_key belong together", "")
	}
	return out
}

func (l *loader) intune(at string, v Validator) LoadedValidator {
	n := v.Intune
	out := LoadedValidator{Validator: v, Kind: "intune", Timeout: l.duration(at+".timeout", n.Timeout, 12*time.Second, time.Second, 15*time.Second)}
	if l.need(at+".tenant", n.Tenant) && !tenantForm.MatchString(n.Tenant) {
		l.fault(at+".tenant", "has to be a domain or an id, such as corp.onmicrosoft.com", "")
	}
	l.need(at+".app", n.App)
	for path, value := range map[string]string{at + ".login": n.Login, at + ".graph": n.Graph, at + ".resource": n.Resource} {
		if u, err := url.Parse(value); value != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "") {
			l.fault(path, "has to be an https URL", "")
		}
	}
	l.abs(&n.Roots)
	if n.Roots != "" {
		out.Roots = l.roots(at+".roots", n.Roots)
	}
	l.abs(&n.Certificate)
	out.SecretPath = l.optional(at+".secret", n.Secret)
	out.Certificate, out.PrivateKey = n.Certificate, l.optional(at+".private_key", n.PrivateKey)
	if (n.Certificate == "") != (n.PrivateKey == Secret{}) {
		l.fault(at+".certificate", "and private_key belong together", "")
	}
	if (n.Certificate == "") == (n.Secret == Secret{}) {
		l.fault(at+".secret", "is one way, certificate and private_key the other: name one of them", "")
	}
	return out
}

// optional is the path of a secret that may be left out.
func (l *loader) optional(path string, s Secret) string {
	if s == (Secret{}) {
		return ""
	}
	return l.secret(path, s)
}

// named checks that each validator of a profile is there, and of the kind that the
// profile says.
func (l *loader) named() {
	var known []string
	kinds := make(map[string]string)
	for _, v := range l.c.Validators {
		known = append(known, v.Name)
		kinds[v.Name] = v.Kind
	}
	for _, name := range l.c.Policies.Names() {
		p, _ := l.c.Policies.Profile(name)
		for _, v := range p.Challenge.Validators {
			fault := policy.Fault{File: p.Source, Line: p.Line, Path: name + ".challenge." + v.Kind}
			switch kind, ok := kinds[v.Name]; {
			case !ok:
				fault.Say, fault.Nearest = fmt.Sprintf("validator %q is defined nowhere", v.Name), policy.Nearest(v.Name, known)
			case kind != v.Kind:
				fault.Say = fmt.Sprintf("validator %q is a %s", v.Name, kind)
			default:
				continue
			}
			l.faults = append(l.faults, fault)
		}
	}
}
