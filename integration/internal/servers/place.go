package servers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
)

// place is where the servers of one test run together: on a network of
// containers, or in a folder as processes.
type place interface {
	// dir is the folder, as the server of that name sees it, of its files and
	// its data.
	dir(name string) string
	// endpoint returns addresses for a server that listens on a port.
	endpoint(name string, port int) (endpoint, error)
	start(ctx context.Context, s spec) (server, error)
	// close removes what is left when all servers are removed.
	close(ctx context.Context) error
}

// endpoint is one port of a server: the address it listens on, the one for
// other servers of the place, and the one for tests.
type endpoint struct {
	listen, inside, outside string
}

type spec struct {
	name    string // of the program
	args    []string
	files   map[string][]byte // in its folder
	publish *endpoint         // what tests talk to
}

// server is one that runs or can be run again, with its files as they were.
type server interface {
	pause(ctx context.Context) error
	resume(ctx context.Context) error
	stop(ctx context.Context) error // kills it
	start(ctx context.Context) error
	running(ctx context.Context) (bool, error)
	remove(ctx context.Context) error
	// output is all it ever wrote.
	output(ctx context.Context) (stdout, stderr []byte, err error)
}

func newPlace(ctx context.Context, f *found) (place, error) {
	if f.engine != nil {
		return newContainers(ctx, f)
	}
	return newProcesses(f)
}

// freePort returns a port of 127.0.0.1 that is free now. It lies below what
// systems give to outgoing connections: one of those could take the port while
// the server is stopped.
func freePort() (int, error) {
	var last error
	for range 100 {
		port := 20000 + rand.IntN(10000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, l.Close()
		}
		last = err
	}
	return 0, errors.Join(errors.New("no free port"), last)
}
