package roles_test

const insideVar = "POSTERN_TEST_ROLE"

func inside(string) int { return 0 }
