// Package device has `postern scep` act as a device of a whole Postern.
//
// # What a caller may rely on
//
// The tests run the binaries against a service that was made by a ceremony, and
// look at what a script of an operator's would see: exit statuses, JSON, files.
//
// # What it does not protect against
//
// Servers of others: test/responder stands for those.
package device
