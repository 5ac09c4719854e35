package sandbox_test

func foreignCalls() []string { return []string{"32-bit call", "x32 call"} }
