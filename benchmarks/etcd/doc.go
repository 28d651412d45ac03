// Package etcd measures the store on etcd beside etcd's own client and its package
// concurrency.
package etcd
