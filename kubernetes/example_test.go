package kubernetes_test

import (
	"context"
	"fmt"
	"time"

	"k8s.io/client-go/rest"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/kubernetes"
	"github.com/leasehold/leasehold/lease"
)

// One of a program's replicas works at a time.
func Example() {
	cfg, err := rest.InClusterConfig()
	if err != nil {
		panic(err)
	}
	store, err := kubernetes.New(cfg, "team-a")
	if err != nil {
		panic(err)
	}
	defer store.Close()
	l, err := lease.New(store, "nightly-report", lease.WithDuration(15*time.Second))
	if err != nil {
		panic(err)
	}
	defer l.Close()
	err = l.Run(context.Background(), func(ctx context.Context) error {
		fmt.Println("leading with token", l.Token())
		return ctx.Err() // ends before anybody else can lead
	})
	if err != nil {
		panic(err)
	}
}

// A program that lets its user choose the store needs no line of its own for
// Kubernetes, but the import of this package.
func Example_url() {
	ctx := context.Background()
	store, err := backend.Open(ctx, "kubernetes://team-a?context=staging")
	if err != nil {
		panic(err)
	}
	defer store.Close()
	for rec, err := range backend.List(ctx, store, "nightly-") {
		if err != nil {
			panic(err)
		}
		fmt.Println(rec.Name, rec.Holder, rec.Token)
	}
}
