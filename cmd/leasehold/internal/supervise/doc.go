// Package supervise runs a command that may act only as long as a lease lasts.
//
// Two processes see to it, each able to do it alone. The wrapper is the one
// that holds the lease. The watchdog is this same program again, small; it
// founds the process group that the command will run in, starts the command
// and is its parent. They share the plan: TERM a grace before the deadline, KILL
// a little before it. The instants come from the deadline, not from the
// detection of a loss, so a store that hangs delays nothing.
//
//	wrapper killed     the watchdog sees its pipe end: TERM, and KILL in time
//	wrapper stopped    the watchdog acts on the last deadline it was told
//	watchdog killed    the kernel kills the command (Linux), the wrapper the rest
//	watchdog stopped   the wrapper acts by itself; KILL reaches the stopped, too
//
// Signals go to the group, and to the command where it has left the group (as
// timeout(1) does). On Linux both processes adopt what loses its parent, so that
// a KILL reaches all that descends from the command, whatever group or session
// it has gone to, another leasehold and its command included. When the command
// ends while the lease lasts, its daemons, which have a session of their own,
// may stay; all else is ended before the lease is given back.
//
// # Limits
//
// If both processes are killed at one instant, the kernel still kills the
// command, but not what it has started. If both are stopped and the command is
// not, nobody ends it. Processes that this user may not signal (sudo) cannot be
// ended; where they outlive the lease, the Outcome says so. A process that was
// killed in the middle of a system call may still finish that. Fencing tokens
// are there for all of this.
//
// The watchdog is started before the lease is asked for: its number is the
// group's, so whoever holds the lease can publish by which processes it acts
// (package departed) before it acts.
package supervise
