// Package kubernetes measures the store on Kubernetes beside client-go.
package kubernetes
