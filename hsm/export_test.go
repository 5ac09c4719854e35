package hsm

// Unpad is for the fuzz target alone.
func Unpad(em, key []byte) { unpad(em, key) }
