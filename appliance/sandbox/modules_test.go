package sandbox_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-pki/postern/appliance/sandbox"
)

func TestKnownModules(t *testing.T) {
	settings := filepath.Join(t.TempDir(), "softhsm2.conf")
	if err := os.WriteFile(settings, []byte("# directories.tokendir = /x\nobjectstore.backend = file\ndirectories.tokendir = /srv/tokens/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		module, variable, value string
		want                    sandbox.Keys
	}{
		{"/usr/lib/softhsm/libsofthsm2.so", "SOFTHSM2_CONF", settings, sandbox.Keys{Read: []string{settings}, Tokens: []string{"/srv/tokens"}}},
		{"/opt/around/softhsm.so", "SOFTHSM2_CONF", settings, sandbox.Keys{Read: []string{settings}, Tokens: []string{"/srv/tokens"}}},
		{"/usr/lib/softhsm/libsofthsm2.so", "SOFTHSM2_CONF", "/nothing/is/here", sandbox.Keys{Read: []string{"/nothing/is/here"}, Tokens: []string{"/var/lib/softhsm/tokens"}}},
		{"/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so", "P11_KIT_SERVER_ADDRESS", "unix:path=/run/p11%2dkit/pkcs11", sandbox.Keys{Dial: []string{"/run/p11-kit/pkcs11"}}},
		{"/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so", "P11_KIT_SERVER_ADDRESS", "vsock:cid=2;port=1", sandbox.Keys{}},
		{"/opt/vendor/lib/module.so", "POSTERN_TEST", "", sandbox.Keys{}},
	} {
		t.Run(tt.module, func(t *testing.T) {
			t.Setenv(tt.variable, tt.value)
			tt.want.Modules = []string{tt.module}
			if diff := cmp.Diff(tt.want, sandbox.Known(tt.module)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
