// Package pipeline asks the running service for certificates in every way that a
// device may, and may not, and reads what the log says of it.
//
// # What a caller may rely on
//
// It holds tests alone. One site serves them all, over TLS, with the real
// binaries and SoftHSM; every test has names, keys and challenges of its own.
// What a device or an attacker is told is checked beside what the log has for
// the operator. When the tests end the service is stopped in order, the whole log
// is verified, and the journal must not have a panic.
//
// # What it does not protect against
//
// What needs a crash is in test/crash, what needs another client in
// test/interop, and each octet of a message in protocol/scep.
package pipeline
