// Package benchmarks measures Leasehold side by side with what its users would
// use instead: the raw client of the store, and other libraries' leases.
//
// Figures of two runs on two machines, or of two days on one, do not compare. So
// everything that is compared is measured in one run, in turns or in parallel,
// and the ratio is the figure that counts. Nothing here fails because it was
// slow. README.md says how to run it and what each figure means.
//
// There is a folder for each store. What they share is in internal: servers
// starts a server, measure reports figures.
package benchmarks
