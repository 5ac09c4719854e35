// Package services runs each role as a service manager would: a process with a user
// of its own, whose sockets were opened before it, and links by sockets with names.
package services
