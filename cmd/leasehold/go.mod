module github.com/leasehold/leasehold/cmd/leasehold

go 1.25.0

require (
	github.com/leasehold/leasehold v0.0.0
	github.com/rogpeppe/go-internal v1.14.1
	github.com/spf13/cobra v1.10.2
	golang.org/x/sys v0.37.0
	golang.org/x/term v0.36.0
)

require (
	github.com/fsnotify/fsnotify v1.9.0 // indirect
	github.com/gofrs/flock v0.13.0 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	golang.org/x/tools v0.26.0 // indirect
)

replace github.com/leasehold/leasehold => ../..
