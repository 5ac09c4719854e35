package policy_test

import (
	"strings"
	"testing"

	"github.com/postern-pki/postern/policy"
)

// What a profile says of the form of its answers, and what it cannot say. It says
// nothing of what is decided.
func TestTheFormOfAnswersOfAProfile(t *testing.T) {
	for text, want := range map[string]struct {
		ca    policy.CACertificates
		reply policy.Reply
		say   string
	}{
		"": {},
		"    ca_certificates: {order: ra-first, root: include}\n    reply: {chain: false, fail_info_text: true}\n": {},
		"    ca_certificates: {order: ca-first}\n": {ca: policy.CACertificates{CAFirst: true}},
		"    ca_certificates: {root: exclude}\n":   {ca: policy.CACertificates{NoRoot: true}},
		"    reply: {chain: true}\n":               {reply: policy.Reply{Chain: true}},
		"    reply: {fail_info_text: false}\n":     {reply: policy.Reply{NoFailInfoText: true}},
		"    ca_certificates: {order: sorted}\n":   {say: "none of ra-first, ca-first"},
		"    ca_certificates: {root: exlude}\n":    {say: `did you mean "exclude"`},
		"    ca_certificates: {rot: exclude}\n":    {say: `did you mean "root"`},
		"    reply: {fail_info_text: no}\n":        {say: "true or false"},
		"    reply: {chain: true, chain: true}\n":  {say: "twice"},
		"    reply: [chain]\n":                     {say: "mapping"},
	} {
		set, err := policy.Load(policy.Source{Name: "p.yaml", Data: []byte(statusProfile + text)})
		if want.say != "" {
			if err == nil || !strings.Contains(err.Error(), want.say) {
				t.Errorf("%s: %v, want %q", text, err, want.say)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		p, _ := set.Profile(set.Names()[0])
		if p.CACertificates != want.ca || p.Reply != want.reply {
			t.Errorf("%s: %+v %+v", text, p.CACertificates, p.Reply)
		}
	}
}
