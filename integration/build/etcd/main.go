// Command etcd is the real etcd server, for the tests of this repository where
// nobody provides one.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
