module github.com/leasehold/leasehold

go 1.25.0

require (
	github.com/fsnotify/fsnotify v1.9.0
	github.com/gofrs/flock v0.13.0
	golang.org/x/sys v0.37.0
)
