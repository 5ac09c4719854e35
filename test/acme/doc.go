// Package acme tests TLS mode acme with pebble, an ACME directory that validates
// what it issues for.
//
// # What a caller may rely on
//
// Everything is the real thing: the service as a process with its keys on SoftHSM,
// the directory as another, and a DNS server that both of the directory's names
// come from.
//
// # What it does not protect against
//
// Pebble forgets its accounts when it stops, and has its own ideas of times to wait.
package acme
