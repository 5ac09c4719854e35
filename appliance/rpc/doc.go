// Package rpc is what the roles say to each other: plain types, their bounds and
// their form on a link.
//
// # What a caller may rely on
//
// What a decoder returns is within the bounds of its type, and encodes to the same
// octets again; anything else is an error, and costs no more memory than the
// message itself.
//
// # What it does not protect against
//
// A message is well formed, not true: who receives one checks what it says.
package rpc
