package etcd

import (
	"context"
	"iter"

	"github.com/leasehold/leasehold/backend"
)

func (s *Store) Examine(ctx context.Context) iter.Seq[backend.Finding] {
	return func(yield func(backend.Finding) bool) {}
}
