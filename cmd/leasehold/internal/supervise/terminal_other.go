//go:build !unix

package supervise

// DieOfInterrupt does nothing here.
func DieOfInterrupt(onlyCommand bool) {}
