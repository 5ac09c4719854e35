package scep

import (
	"sync"

	"github.com/postern-pki/postern/protocol/cms"
)

// maxOwn bounds what is remembered: three certificates for each generation of each
// profile's issuer.
const maxOwn = 512

// certificates remembers the certificates of the service, which are the same in
// every request. What a stranger sent never comes here.
type certificates struct {
	mu     sync.RWMutex
	parsed map[string]*cms.Certificate // by their DER
}

// parse is [cms.ParseCertificate]. The result must not be changed.
func (c *certificates) parse(der []byte) (*cms.Certificate, error) {
	c.mu.RLock()
	cert, ok := c.parsed[string(der)]
	c.mu.RUnlock()
	if ok {
		return cert, nil
	}
	cert, err := cms.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parsed == nil || len(c.parsed) >= maxOwn { // older ones are of keys that were replaced
		c.parsed = make(map[string]*cms.Certificate)
	}
	c.parsed[string(der)] = cert
	return cert, nil
}
