package audit

// File is what the log writes lines to.
type File = file

// Disk is the seam through which tests break the disk.
type Disk = disk

// RealDisk is the disk of a log outside tests.
func RealDisk() Disk { return realDisk{} }

// WithDisk has a log use d.
func (o Options) WithDisk(d Disk) Options { o.disk = d; return o }

// ReadFields says whether the verifier takes the line.
func ReadFields(raw []byte) bool { var f fields; return f.read(raw, new(times)) }
