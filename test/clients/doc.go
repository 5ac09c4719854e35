// Package clients tests what field clients send, with the service as a whole: old
// algorithms and old HTTP, keys that cannot decrypt, other key transports, and what
// the report says of them. OpenSSL makes and opens messages.
//
// # What a caller may rely on
//
// It holds tests alone, and needs Debian's openssl.
//
// # What it does not protect against
//
// Clients that do not run here.
package clients
