package servers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"
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
	program string
	name    string // of the server in its place
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
	// address is the IP address at which the others of its place reach it now.
	address(ctx context.Context) (string, error)
	// sever cuts a link, which nobody at its other end is told of; mend undoes it.
	// Where servers cannot be told apart it is an errors.ErrUnsupported.
	sever(ctx context.Context, l link) error
	mend(ctx context.Context, l link) error
	remove(ctx context.Context) error
	// output is all it ever wrote.
	output(ctx context.Context) (stdout, stderr []byte, err error)
}

// link is one of the two ways to a server and from it.
type link int

const (
	toServers link = iota // the others of its place
	toTests
)

// named is a server that was started.
type named struct {
	server
	name string
}

// lastWords is the end of what each server said; of one that only talks to its
// standard output, that.
func lastWords(servers []named) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var all strings.Builder
	for _, s := range servers {
		stdout, stderr, err := s.output(ctx)
		if err != nil {
			continue
		}
		if len(stderr) == 0 {
			stderr = stdout
		}
		if len(stderr) > 0 {
			fmt.Fprintf(&all, "%s said:\n%s\n", s.name, tail(stderr, 15))
		}
	}
	return all.String()
}

// noneEnded returns an error that tells which server has ended.
func noneEnded(ctx context.Context, servers []named) error {
	for _, s := range servers {
		if running, err := s.running(ctx); err != nil {
			return err
		} else if !running {
			return fmt.Errorf("%s has ended", s.name)
		}
	}
	return nil
}

// removeAll removes servers, all at once, and then their place.
func removeAll(ctx context.Context, p place, servers []named) error {
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() { errs[i] = s.remove(ctx) })
	}
	wg.Wait()
	if p != nil {
		errs = append(errs, p.close(ctx))
	}
	return errors.Join(errs...)
}

// onFreePorts calls start again if somebody else has got one of the ports first.
func onFreePorts[T any](ctx context.Context, start func() (T, error)) (T, error) {
	const tries = 3
	for try := 1; ; try++ {
		s, err := start()
		if err == nil || try == tries || ctx.Err() != nil {
			return s, err
		}
		if why := strings.ToLower(err.Error()); !strings.Contains(why, "address already in use") && !strings.Contains(why, "port is already allocated") {
			return s, err
		}
	}
}

// newPlace returns no place with an error, which is why those it calls do not
// return pointers.
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
