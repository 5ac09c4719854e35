package softhsm_test

import (
	"os"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/postern-pki/postern/test/softhsm"
)

func TestMain(m *testing.M) { os.Exit(softhsm.Main(m)) }

func TestTokensOfOneProcess(t *testing.T) {
	first, second := softhsm.New(t), softhsm.New(t)
	if first.Conf != second.Conf || first.Serial == second.Serial || first.Label == second.Label {
		t.Fatalf("two tokens in one directory wanted: %+v, %+v", first, second)
	}
	seen := labels(t, first.Module)
	if !seen[first.Label] || !seen[second.Label] {
		t.Errorf("the module sees %v, want both tokens", seen)
	}
	if env := strings.Join(first.Env(), "\n"); !strings.Contains(env, "SOFTHSM2_CONF="+first.Conf) {
		t.Error("a child process would not find the token")
	}
}

func TestTokenIsGoneAfterItsTest(t *testing.T) {
	var gone softhsm.Token
	t.Run("owner", func(t *testing.T) { gone = softhsm.New(t) })
	softhsm.Empty(t)
	if labels(t, softhsm.Module)[gone.Label] {
		t.Errorf("token %q is still there", gone.Label)
	}
}

func TestShimPassesCallsOn(t *testing.T) {
	tok, shim := softhsm.New(t), softhsm.NewShim(t)
	if !labels(t, shim.Module)[tok.Label] {
		t.Error("the shim does not show SoftHSM's token")
	}
}

func labels(t *testing.T, module string) map[string]bool {
	t.Helper()
	p := pkcs11.New(module)
	if p == nil {
		t.Fatal("cannot load " + module)
	}
	defer p.Destroy()
	if err := p.Initialize(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Finalize() }()
	slots, err := p.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, s := range slots {
		info, err := p.GetTokenInfo(s)
		if err != nil {
			t.Fatal(err)
		}
		all[info.Label] = true
	}
	return all
}
