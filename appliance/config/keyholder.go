package config

import (
	"path/filepath"
	"strings"
	"time"
)

// keyholder checks what the keyholder has of its own. Its folder is not the
// authority's: neither may read what the other keeps.
func (l *loader) keyholder() {
	k := &l.c.Keyholder
	if k.State == "" && l.c.State != "" {
		k.State = filepath.Join(filepath.Dir(l.c.State), "keyholder")
	}
	l.abs(&k.State)
	if k.State == l.c.State && k.State != "" {
		l.fault("keyholder.state", "has to be another folder than state: the authority writes there", "")
	}
	if k.MaxPerSecond < 0 || k.MaxPerSecond > 1_000_000 {
		l.fault("keyholder.max_per_second", "is 1 to 1000000 certificates", "")
	}
	l.c.KeyholderState, l.c.KeyholderRate = k.State, k.MaxPerSecond
	l.c.MarkEvery = l.duration("keyholder.mark_every", k.MarkEvery, l.markEvery(), time.Second, 24*time.Hour)
}

// markEvery spares a real token's memory, which bears so many writes; SoftHSM's is a
// file, and there a minute costs nothing.
func (l *loader) markEvery() time.Duration {
	for _, t := range l.c.Tokens {
		if strings.HasPrefix(filepath.Base(t.Module), "libsofthsm2") {
			return time.Minute
		}
	}
	return 10 * time.Minute
}

// links fills in what the units of this project have.
func (l *loader) links() {
	k := &l.c.Links
	for _, one := range []struct {
		value     *string
		otherwise string
	}{{&k.Folder, "/run/postern"}, {&k.Authority, "postern-authority"}, {&k.Devices, "postern-devices"}, {&k.Operators, "postern-operators"}} {
		if *one.value == "" {
			*one.value = one.otherwise
		}
	}
	l.abs(&k.Folder)
	if k.Authority == k.Devices || k.Devices == k.Operators || k.Operators == k.Authority {
		l.fault("links", "two roles have the same user: nobody could tell them apart", "")
	}
}
