// Package interop tests the running service with clients that others wrote:
// strongSwan's pki, and a small one on github.com/smallstep/scep.
//
// # What a caller may rely on
//
// It holds tests alone, and needs Debian's strongswan-pki,
// libstrongswan-extra-plugins and openssl.
//
// # What it does not protect against
//
// Clients that do not run here.
package interop
