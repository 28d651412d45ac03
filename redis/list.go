package redis

import (
	"context"
	"iter"
	"slices"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"

	"github.com/leasehold/leasehold/backend"
)

// List yields every name with the prefix. Names that come, go or move to another
// server of a cluster meanwhile may be missing; no other is, and none comes twice.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[backend.Record, error] {
	return func(yield func(backend.Record, error) bool) {
		if err := s.usable(ctx); err != nil {
			yield(backend.Record{}, err)
			return
		}
		servers, err := s.servers(ctx)
		if err != nil {
			yield(backend.Record{}, s.describe("listing leases", err))
			return
		}
		seen := make(map[string]struct{})
		for _, server := range servers {
			for cursor, more := uint64(0), true; more; more = cursor != 0 {
				var keys []string
				if keys, cursor, err = s.scan(ctx, server, cursor, s.pattern(prefix)); err != nil {
					yield(backend.Record{}, s.describe("listing leases", err))
					return
				}
				var names []string
				for _, key := range keys {
					name, ok := s.nameOf(key)
					if _, told := seen[name]; ok && !told && strings.HasPrefix(name, prefix) {
						seen[name] = struct{}{}
						names = append(names, name)
					}
				}
				if !s.lookAll(ctx, names, yield) {
					return
				}
			}
		}
	}
}

// servers are those that have keys.
func (s *Store) servers(ctx context.Context) ([]goredis.Cmdable, error) {
	cluster, ok := s.client.(*goredis.ClusterClient)
	if !ok {
		return []goredis.Cmdable{s.client}, nil
	}
	return within(ctx, s, func(ctx context.Context) ([]goredis.Cmdable, error) {
		var mu sync.Mutex
		var nodes []goredis.Cmdable
		err := cluster.ForEachMaster(ctx, func(_ context.Context, node *goredis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			nodes = append(nodes, node)
			return nil
		})
		return nodes, err
	})
}

// scan reads a page of keys.
func (s *Store) scan(ctx context.Context, server goredis.Cmdable, cursor uint64, pattern string) (keys []string, next uint64, err error) {
	type page struct {
		keys []string
		next uint64
	}
	p, err := within(ctx, s, func(ctx context.Context) (page, error) {
		keys, next, err := server.Scan(ctx, cursor, pattern, 1000).Result()
		return page{keys, next}, err
	})
	return p.keys, p.next, err
}

// lookAll yields the records of names, and reports whether to go on.
func (s *Store) lookAll(ctx context.Context, names []string, yield func(backend.Record, error) bool) bool {
	type found struct {
		st  *state
		err error
	}
	for some := range slices.Chunk(names, mostTogether) {
		all := make([]found, len(some))
		var wg sync.WaitGroup
		for i, name := range some {
			wg.Go(func() { all[i].st, all[i].err = s.look(ctx, name) })
		}
		wg.Wait()
		for _, f := range all {
			switch {
			case ctx.Err() != nil:
				yield(backend.Record{}, ctx.Err())
				return false
			case f.err != nil:
				yield(backend.Record{}, f.err)
				return false
			case f.st.absent:
			case f.st.err != nil:
				if !yield(backend.Record{Name: f.st.rec.Name}, f.st.err) {
					return false
				}
			case !yield(f.st.rec, nil):
				return false
			}
		}
	}
	return true
}

// within makes a call of the client's, and does not wait for it for longer than ctx
// and the store's timeout last, whatever the client does.
func within[T any](ctx context.Context, s *Store, f func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := s.bound(ctx)
	type answer struct {
		v   T
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		v, err := f(ctx)
		answers <- answer{v, err}
	}()
	defer cancel()
	select {
	case a := <-answers:
		return a.v, a.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
