// Package supervise runs a command that may act only as long as a lease lasts.
//
// Two processes see to it, each able to do it alone. The wrapper is the one
// that holds the lease. The watchdog is this same program again, small; it
// founds the process group that the command will run in, starts the command
// and is its parent. They share the plan: TERM to the group a grace before the
// deadline, KILL a little before it. The instants come from the deadline, not
// from the detection of a loss, so a store that hangs delays nothing.
//
//	wrapper killed     the watchdog sees its pipe end: TERM, and KILL in time
//	wrapper stopped    the watchdog acts on the last deadline it was told
//	watchdog killed    the kernel kills the command (Linux), the wrapper the rest of the group
//	watchdog stopped   the wrapper acts by itself; KILL reaches the stopped, too
//
// If both are killed at one instant, the kernel still kills the command, but
// not what it has started. If both are stopped and the command is not, nobody
// ends it. A process that leaves the group (setsid) is out of reach.
//
// The watchdog is started before the lease is asked for: its number is the
// group's, so whoever holds the lease can publish by which processes it acts
// (package departed) before it acts.
package supervise
