// Package pending tests requests that wait for an operator, with the service as a
// whole: strongSwan's pki polls, people decide with postern, and the service is
// stopped and killed meanwhile.
//
// # What a caller may rely on
//
// It holds tests alone, and needs Debian's strongswan-pki,
// libstrongswan-extra-plugins and openssl.
//
// # What it does not protect against
//
// Clients that do not run here.
package pending
