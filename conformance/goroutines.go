package conformance

import (
	"bytes"
	"context"
	"reflect"
	"runtime/pprof"
	"strconv"
	"strings"

	"github.com/leasehold/leasehold/backend"
)

// labelled runs f so that the goroutines it starts, directly or not, can be told
// from all others: labels are inherited.
func labelled(run, name string, f func()) {
	pprof.Do(context.Background(), pprof.Labels("conformance", run+":"+name), func(context.Context) { f() })
}

// goroutines returns the stacks of all goroutines that a case started and that
// are still there; of all cases of the run if name is "", of all runs if run is
// too.
func goroutines(run, name string) (stacks []string) {
	mark := `"conformance":"`
	if run != "" {
		mark += run + ":"
	}
	if name != "" {
		mark += name + `"`
	}
	var profile bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&profile, 1)
	for stack := range strings.SplitSeq(profile.String(), "\n\n") {
		if strings.Contains(stack, mark) {
			stacks = append(stacks, strings.TrimSpace(stack))
		}
	}
	return stacks
}

// count returns how many goroutines are in the code of a package, or beneath it.
func count(stacks []string, pkg string) (n int) {
	for _, stack := range stacks {
		if strings.Contains(stack, "\t"+pkg+".") || strings.Contains(stack, "\t"+pkg+"/") {
			alike, _, _ := strings.Cut(stack, " ") // goroutines with one stack share an entry
			k, _ := strconv.Atoi(alike)
			n += k
		}
	}
	return n
}

// packageOf returns the package of a store's type.
func packageOf(s backend.Store) string {
	typ := reflect.TypeOf(s)
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	return typ.PkgPath()
}
