package backend

import (
	"context"
	"iter"
	"slices"
	"testing"
)

type examinedStore struct {
	fakeStore
	found []Finding
}

func (s *examinedStore) Examine(context.Context) iter.Seq[Finding] { return slices.Values(s.found) }

func TestExamine(t *testing.T) {
	for x := range Examine(t.Context(), &fakeStore{}) {
		t.Errorf("a store that cannot tell has found %+v", x)
	}
	found := []Finding{{Check: "a"}, {Check: "b", Level: Problem}}
	if got := slices.Collect(Examine(t.Context(), &examinedStore{found: found})); !slices.Equal(got, found) {
		t.Errorf("found %+v, want %+v", got, found)
	}
}

func TestLevels(t *testing.T) {
	for l, want := range map[Level]string{Good: "ok", Note: "note", Warning: "warning", Problem: "problem", 7: "Level(7)"} {
		if l.String() != want {
			t.Errorf("%d is %q, want %q", int(l), l, want)
		}
	}
	if !(Good < Note && Note < Warning && Warning < Problem) {
		t.Error("a greater level is not worse")
	}
}
