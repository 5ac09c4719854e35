package hsm

// Unpad and UnpadOAEP are for the fuzz targets alone.
func Unpad(em, key []byte) { unpad15(em, key) }

func UnpadOAEP(o *OAEPOptions, em, key []byte) { o.unpad(em, key) }
