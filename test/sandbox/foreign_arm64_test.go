package sandbox_test

// A program of 64 bit cannot change over to the other set of instructions.
func foreignCalls() []string { return nil }
