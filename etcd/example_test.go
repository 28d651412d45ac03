package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/etcd"
	"github.com/leasehold/leasehold/lease"
)

func Example() {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:2379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	store := etcd.New(client, "/jobs")
	defer store.Close()
	l, err := lease.New(store, "nightly-report")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	err = l.Run(context.Background(), func(ctx context.Context) error {
		fmt.Println("nobody else is here; token", l.Token())
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
}

// A holder counts something up. If it was paused for so long that another has
// taken over, what it writes then is refused by etcd.
func ExampleStore_Guarded() {
	count := func(ctx context.Context, client *clientv3.Client, store *etcd.Store, l *lease.Lease) error {
		now, err := client.Get(ctx, "/app/visits")
		if err != nil {
			return err
		}
		var visits int
		if len(now.Kvs) > 0 {
			if _, err := fmt.Sscan(string(now.Kvs[0].Value), &visits); err != nil {
				return err
			}
		}
		_, err = store.Guarded(ctx, l.Record(), nil, clientv3.OpPut("/app/visits", fmt.Sprint(visits+1)))
		if errors.Is(err, backend.ErrLost) {
			return fmt.Errorf("somebody else holds the lease by now: %w", err)
		}
		return err
	}
	_ = count
}

// The condition stands beside others in a transaction of one's own.
func ExampleStore_Guard() {
	write := func(ctx context.Context, client *clientv3.Client, store *etcd.Store, l *lease.Lease) error {
		resp, err := client.Txn(ctx).
			If(store.Guard(l.Record()), clientv3.Compare(clientv3.Version("/app/leader"), ">", 0)).
			Then(clientv3.OpPut("/app/leader", string(l.Holder()))).
			Commit()
		if err != nil {
			return err // it may have been done
		}
		if !resp.Succeeded {
			return errors.New("not the holder any more, or there is no such key")
		}
		return nil
	}
	_ = write
}
