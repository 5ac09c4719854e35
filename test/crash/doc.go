// Package crash kills the service, and breaks what it stands on, and looks at
// what is left.
//
// # What a caller may rely on
//
// It holds tests alone. They use whole sites with the real binaries: the service
// dies by SIGKILL under load, loses its token, is given a wrong PIN, a wrong
// configuration, a second instance or a damaged log, and its token and its disk
// fail in the middle of an enrollment. What a device was told is compared with
// the log and with the index. POSTERN_SOAK=1 makes the loops ten times longer.
//
// # What it does not protect against
//
// A killed process keeps what the kernel has: what a loss of power leaves on a
// disk is not tried.
package crash
