package config

import (
	"fmt"
	"slices"
	"time"

	"github.com/postern-pki/postern/policy"
)

// LoadedToken is a [Token] with what its words mean. Name is never empty.
type LoadedToken struct {
	Token
	PINPath  string
	Deadline time.Duration
}

// TokenOf returns the token of the key of that name; Load made sure that both are there.
func (c *Config) TokenOf(key string) LoadedToken {
	name := c.KeyNamed(key).Token
	return c.Tokens[slices.IndexFunc(c.Tokens, func(t LoadedToken) bool { return t.Name == name })]
}

// onlyToken is the name of a token that has none.
const onlyToken = "token"

// maxTokens bounds the list; an appliance has six keys.
const maxTokens = 16

// tokens checks the one token or the list of them, and which key is on which.
func (l *loader) tokens() {
	list, single := l.c.File.Tokens, len(l.c.File.Tokens) == 0
	_, given := l.at["token"]
	switch {
	case given && !single:
		l.fault("tokens", "has to be alone: move what is under token into the list, with a name", "")
		return
	case len(list) > maxTokens:
		l.fault("tokens", fmt.Sprintf("are at most %d", maxTokens), "")
		return
	case single:
		list = []Token{l.c.Token}
	}
	var names []string
	for i, t := range list {
		at := fmt.Sprintf("tokens[%d]", i)
		switch {
		case single:
			at = "token"
			if t.Name == "" {
				t.Name = onlyToken
			}
		case l.need(at+".name", t.Name) && slices.Contains(names, t.Name):
			l.fault(at+".name", "is given twice", "")
		}
		names = append(names, t.Name)
		l.c.Tokens = append(l.c.Tokens, l.token(at, t))
	}
	l.oneSoftHSM()
	for i := range l.c.Keys {
		k, at := &l.c.Keys[i], fmt.Sprintf("keys[%d].token", i)
		switch {
		case k.Token == "" && len(names) == 1:
			k.Token = names[0]
		case k.Token == "":
			l.fault(at, "is missing: there are several tokens", "")
		case !slices.Contains(names, k.Token):
			l.fault(at, fmt.Sprintf("token %q is defined nowhere", k.Token), policy.Nearest(k.Token, names))
		}
	}
}

func (l *loader) token(at string, t Token) LoadedToken {
	if l.need(at+".module", t.Module) {
		l.abs(&t.Module)
	}
	if t.Serial == "" && t.Label == "" {
		l.fault(at, "has to name the token by serial or label", "")
	}
	if t.Sessions < 0 || t.Sessions > 256 {
		l.fault(at+".sessions", "is 0 to 256", "")
	}
	l.abs(&t.SoftHSM2Conf)
	for _, list := range [][]string{t.Sandbox.Read, t.Sandbox.Write, t.Sandbox.Connect} {
		for i := range list {
			l.abs(&list[i])
		}
	}
	return LoadedToken{
		Token: t, PINPath: l.secret(at+".pin", t.PIN),
		Deadline: l.duration(at+".deadline", t.Deadline, 5*time.Second, 100*time.Millisecond, time.Minute),
	}
}

// oneSoftHSM: the library reads one variable of the environment for the whole process.
func (l *loader) oneSoftHSM() {
	for i, t := range l.c.Tokens {
		switch {
		case t.SoftHSM2Conf == "":
		case l.c.SoftHSM2Conf == "":
			l.c.SoftHSM2Conf = t.SoftHSM2Conf
		case l.c.SoftHSM2Conf != t.SoftHSM2Conf:
			l.fault(fmt.Sprintf("tokens[%d].softhsm2_conf", i), "has to be the same for all tokens of SoftHSM", "")
		}
	}
}
