// Package crash tests what is left when the service ends without a word, or
// should never have begun: kills under load, a missing token, a wrong PIN, a
// damaged log.
//
// # What a caller may rely on
//
// It holds tests alone. POSTERN_SOAK=1 makes the loops ten times longer.
//
// # What it does not protect against
//
// A killed process keeps what the kernel has; a power cut does not.
package crash
