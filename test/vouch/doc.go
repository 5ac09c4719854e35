// Package vouch has whole services ask those who vouch for requests: fakes that are
// strict about what they are asked, at the other end of real connections.
package vouch
