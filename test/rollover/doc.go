// Package rollover tests the way from one CA to the next with a whole service: a CA
// staged by a ceremony on the token that the service uses, GetNextCACert, requests
// to each generation, the switch and back, and the same state after a rebuild.
package rollover
