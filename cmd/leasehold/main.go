// Command leasehold guards a command with a lease, and looks after leases. See
// leasehold --help, and leasehold run --help for the exit codes.
package main

import "os"

func main() { os.Exit(execute(os.Args[1:])) }
