package conformance

import "time"

// LeftRunning returns the goroutines in a package that any run of the suite left.
func LeftRunning(pkg string, within time.Duration) []string {
	return leftRunning("", map[string]bool{pkg: true}, within)
}
