// Package pipeline tests what a device and an attacker see of the running
// service: one certificate for a challenge, exact budgets, one text for all that
// a stranger could learn from.
//
// # What a caller may rely on
//
// It holds tests alone.
//
// # What it does not protect against
//
// What needs a crash is in test/crash, what needs another client in
// test/interop.
package pipeline
