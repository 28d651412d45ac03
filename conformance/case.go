package conformance

import (
	"slices"
	"strings"
)

// Case is one thing that is checked. Cases do not depend on one another; each
// uses names of its own.
type Case struct {
	Name string // "contract/acquire-free": a group and a name, stable
	Rule string // what must hold
	Why  string // what goes wrong where it does not

	// Run checks it. It fails through the Env's methods (Fatalf and those built on
	// it), which end Run, and passes by returning.
	Run func(e *Env)
}

// Group is the first part of the name.
func (c Case) Group() string {
	group, _, _ := strings.Cut(c.Name, "/")
	return group
}

// Cases returns all cases, in the order in which they are best read: what the
// later ones rely on comes first.
func Cases() []Case {
	return slices.Concat(
		acquireCases,
		overCases,
		recordCases,
		renewCases,
		releaseCases,
		claimCases,
		sealCases,
		clientCases,
		tokenCases,
		nameCases,
		timeCases,
		concurrencyCases,
		watchCases,
		garbageCases,
		leaseCases,
		lossCases,
		faultCases,
		waitingCases,
	)
}
