package conformance_test

import (
	"testing"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/backend/file"
	"github.com/leasehold/leasehold/backend/memory"
	"github.com/leasehold/leasehold/conformance"
)

func TestMemory(t *testing.T) {
	store := memory.New()
	t.Cleanup(func() { _ = store.Close() })
	conformance.Run(t, func(testing.TB) backend.Store { return store.Client() }, conformance.WithPatience(*patience))
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	conformance.Run(t, func(tb testing.TB) backend.Store {
		s, err := file.New(dir)
		if err != nil {
			tb.Fatal(err)
		}
		return s
	})
}

// TestDecorated runs the suite over a store that does nothing but pass calls on.
func TestDecorated(t *testing.T) {
	store := memory.New()
	t.Cleanup(func() { _ = store.Close() })
	conformance.Run(t, func(testing.TB) backend.Store { return conformance.NewFaults(store.Client()).Store() })
}
