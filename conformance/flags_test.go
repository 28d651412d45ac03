package conformance_test

import (
	"flag"
	"time"
)

// patience shortens the runs that are expected to fail.
var patience = flag.Duration("patience", 15*time.Second, "see conformance.WithPatience")
