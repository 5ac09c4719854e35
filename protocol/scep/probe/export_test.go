package probe

import "crypto/rsa"

// WithKey saves the time that it takes to make a key.
func (o Options) WithKey(key *rsa.PrivateKey) Options {
	o.key = key
	return o
}
