// Package interop tests the running service with clients that others wrote:
// strongSwan's pki, certmonger, a small one on github.com/smallstep/scep, and the
// layers of messages that openssl makes and opens.
//
// # What a caller may rely on
//
// It holds tests alone, and needs Debian's strongswan-pki,
// libstrongswan-extra-plugins, certmonger, dbus-daemon and openssl.
//
// # What it does not protect against
//
// Clients that do not run here.
package interop
