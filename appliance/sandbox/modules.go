package sandbox

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// maxSettings bounds how much of a module's settings is read.
const maxSettings = 64 << 10

// Known is what is known of a PKCS#11 module by its file's name and by the variables of
// the environment that it obeys. The operator's configuration adds to it. Of a module
// that is not known only its folder is in it.
func Known(module string) Keys {
	k := Keys{Modules: []string{module}}
	name := filepath.Base(module)
	settings, named := os.LookupEnv("SOFTHSM2_CONF")
	switch {
	case strings.HasPrefix(name, "libopencryptoki") || name == "PKCS11_API.so":
		k.Read = []string{"/etc/opencryptoki", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"} // it asks for the group pkcs11
		k.Tokens = []string{"/var/lib/opencryptoki", "/run/lock/opencryptoki", "/dev/shm"}
		k.Dial = []string{"/run/pkcsslotd.socket"}
	case name == "p11-kit-client.so":
		if at, ok := strings.CutPrefix(os.Getenv("P11_KIT_SERVER_ADDRESS"), "unix:path="); ok {
			if path, err := url.PathUnescape(at); err == nil {
				k.Dial = []string{path}
			}
		}
	case named || strings.HasPrefix(name, "libsofthsm2"):
		if settings == "" {
			settings = "/etc/softhsm/softhsm2.conf"
		}
		k.Read, k.Tokens = []string{settings}, []string{softHSM(settings)}
	}
	return k
}

// softHSM is the folder of SoftHSM's tokens, as its settings have it.
func softHSM(settings string) string {
	const otherwise = "/var/lib/softhsm/tokens"
	f, err := os.Open(settings)
	if err != nil {
		return otherwise
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, maxSettings)
	n, _ := f.Read(b)
	folder := otherwise
	for line := range strings.Lines(string(b[:n])) {
		if key, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(key) == "directories.tokendir" {
			folder = filepath.Clean(strings.TrimSpace(value))
		}
	}
	return folder
}
