// Package etcd keeps leases in etcd v3.
package etcd
