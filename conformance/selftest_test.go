package conformance_test

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/conformance"
	"github.com/leasehold/leasehold/conformance/internal/broken"
)

// TestReference runs the suite over a store that is right, in all the ways in
// which stores may differ.
func TestReference(t *testing.T) {
	variants := []struct {
		name  string
		store broken.Options
		suite []conformance.Option
	}{
		{name: "plain"},
		{name: "hidden", store: broken.Options{Hidden: true}},
		{name: "floors", store: broken.Options{KeepsFloor: true}},
		{name: "coarse", store: broken.Options{MinDuration: time.Second, Granularity: time.Second, Hidden: true, Slack: 500 * time.Millisecond}},
		{name: "slack", store: broken.Options{MinDuration: time.Second, Granularity: time.Second, Slack: time.Minute}},
		{name: "polled", store: broken.Options{NoWatch: true}},
		{
			name:  "minimal",
			store: broken.Options{NoWatch: true, NoList: true, NoSeals: true, NoMinToken: true},
			suite: []conformance.Option{conformance.Without(conformance.List, conformance.Seals, conformance.MinToken)},
		},
	}
	if testing.Short() {
		variants = variants[:1]
	}
	var wg sync.WaitGroup
	for _, v := range variants {
		wg.Go(func() {
			t.Run(v.name, func(t *testing.T) {
				w := broken.New(v.store)
				conformance.Run(t, func(testing.TB) backend.Store { return w.Open() }, v.suite...)
			})
		})
	}
	wg.Wait()
}

// caught says which case is there for which defect.
var caught = []struct {
	defect  broken.Defect
	by      string
	options broken.Options
}{
	{broken.NotAtomic, "concurrency/one-winner", broken.Options{}},
	{broken.NotAtomic, "concurrency/one-winner-over", broken.Options{}},
	{broken.NotAtomic, "concurrency/one-winner-expired", broken.Options{}},
	{broken.NotAtomic, "concurrency/hammer", broken.Options{}},
	{broken.TokenRestarts, "tokens/release", broken.Options{}},
	{broken.TokenRestarts, "tokens/expiry", broken.Options{}},
	{broken.TokenPerHolder, "tokens/takeover", broken.Options{}},
	{broken.TokenFromClock, "tokens/release", broken.Options{}},
	{broken.TokenTooLarge, "contract/acquire-free", broken.Options{}},
	{broken.ForgetsMinToken, "tokens/min-token", broken.Options{}},
	{broken.ForgetsMinToken, "tokens/min-token-expiry", broken.Options{KeepsFloor: true}},
	{broken.ForgetsFloor, "tokens/min-token", broken.Options{KeepsFloor: true}},
	{broken.ForgetsFloor, "tokens/min-token-expiry", broken.Options{KeepsFloor: true}},
	{broken.IgnoresToken, "contract/renew-replaced", broken.Options{}},
	{broken.IgnoresToken, "contract/release-stale", broken.Options{}},
	{broken.IgnoresHolder, "contract/renew-forged", broken.Options{}},
	{broken.IgnoresHolder, "contract/release-forged", broken.Options{}},
	{broken.ReleaseIsForce, "contract/release-stale", broken.Options{}},
	{broken.ReleaseIsForce, "contract/release-forged", broken.Options{}},
	{broken.ReleaseExpiredBlindly, "contract/release-expired-changed", broken.Options{}},
	{broken.CannotReleaseExpired, "contract/release-expired", broken.Options{}},
	{broken.ReleaseLeavesRecord, "contract/release", broken.Options{}},
	{broken.ReleaseLeavesRecord, "garbage/released", broken.Options{}},
	{broken.SecondReleaseSucceeds, "contract/release-twice", broken.Options{}},
	{broken.SecondReleaseSucceeds, "concurrency/one-release", broken.Options{}},
	{broken.RenewRevives, "contract/renew-expired", broken.Options{}},
	{broken.RenewRecreates, "contract/renew-released", broken.Options{}},
	{broken.RenewRecreates, "garbage/refused", broken.Options{}},
	{broken.RenewNeedsRevision, "contract/renew-any-record", broken.Options{}},
	{broken.RenewExtendsNothing, "time/renewed-outlives", broken.Options{}},
	{broken.RenewExtendsNothing, "time/renewed-expiry", broken.Options{}},
	{broken.RenewForgetsMetadata, "contract/renew", broken.Options{}},
	{broken.OverIsForce, "contract/over-stale", broken.Options{}},
	{broken.OverIsForce, "contract/over-absent", broken.Options{}},
	{broken.OverIsForce, "contract/over-vacant", broken.Options{KeepsFloor: true}},
	{broken.OverIsIgnored, "contract/over-match", broken.Options{}},
	{broken.OverIsIgnored, "contract/over-own", broken.Options{}},
	{broken.OverTakesExpired, "contract/over-stale-expired", broken.Options{}},
	{broken.OverTakesAbsent, "contract/over-absent", broken.Options{}},
	{broken.RefusesSameAttempt, "contract/acquire-same-attempt", broken.Options{}},
	{broken.RefusesSameAttempt, "concurrency/one-attempt", broken.Options{}},
	{broken.AttemptOutlivesExpiry, "contract/acquire-same-attempt-expired", broken.Options{}},
	{broken.AttemptDoesNotExtend, "time/same-attempt-extends", broken.Options{}},
	{broken.EmptyAttemptIsOne, "contract/acquire-no-attempt", broken.Options{}},
	{broken.SameHolderIsGranted, "contract/acquire-same-holder", broken.Options{}},
	{broken.RefusalIsEmpty, "contract/acquire-held", broken.Options{}},
	{broken.RenewalsAreHidden, "contract/over-renewed", broken.Options{}},
	{broken.RenewalsAreNotStamped, "contract/over-renewed", broken.Options{}},
	{broken.RenewalsLookLikeChanges, "contract/renew", broken.Options{}},
	{broken.FoldsCase, "names/distinct", broken.Options{}},
	{broken.CutsNames, "names/long", broken.Options{}},
	{broken.TrimsNames, "names/distinct", broken.Options{}},
	{broken.UnescapesNames, "names/distinct", broken.Options{}},
	{broken.TakesAnyName, "names/invalid", broken.Options{}},
	{broken.TakesAnyName, "names/long", broken.Options{}},
	{broken.ListFoldsCase, "names/list", broken.Options{}},
	{broken.ListsKeys, "names/list", broken.Options{}},
	{broken.ListIsCutShort, "names/list-cancelled", broken.Options{}},
	{broken.ExpiresEarly, "time/expiry", broken.Options{}},
	{broken.ExpiresEarly, "time/expired-not-early", broken.Options{}},
	{broken.ExpiresLate, "time/expiry", broken.Options{}},
	{broken.SealsExpire, "contract/seal-forever", broken.Options{}},
	{broken.OldTimers, "time/old-timers", broken.Options{}},
	{broken.HidesExpired, "contract/get-expired", broken.Options{}},
	{broken.RemainingTooSmall, "contract/remaining", broken.Options{}},
	{broken.RaisesDuration, "contract/min-duration", broken.Options{MinDuration: time.Second}},
	{broken.DoesNotRound, "contract/granted-duration", broken.Options{Granularity: time.Second}},
	{broken.TakesAnyClaim, "contract/claim-invalid", broken.Options{}},
	{broken.AliasesMetadata, "contract/metadata-isolated", broken.Options{}},
	{broken.MergesMetadata, "contract/metadata", broken.Options{}},
	{broken.StaleReads, "contract/renew", broken.Options{}},
	{broken.StaleReads, "concurrency/hammer", broken.Options{}},
	{broken.WatchSkipsPresent, "watch/present-state", broken.Options{}},
	{broken.WatchHasGap, "watch/no-gap", broken.Options{}},
	{broken.WatchMissesRelease, "watch/changes", broken.Options{}},
	{broken.WatchMissesRelease, "watch/newest-never-missed", broken.Options{}},
	{broken.WatchMissesTakeover, "watch/changes", broken.Options{}},
	{broken.WatchMissesExpiry, "watch/expiry", broken.Options{}},
	{broken.WatchFailsOnCancel, "watch/ends", broken.Options{}},
	{broken.WatchOutlivesContext, "watch/ends", broken.Options{}},
	{broken.WatchEndsSilently, "watch/closed", broken.Options{}},
	{broken.WorksAfterClose, "contract/closed", broken.Options{}},
	{broken.SecondCloseFails, "contract/closed", broken.Options{}},
	{broken.CloseEndsTenures, "contract/close-leaves-others", broken.Options{}},
	{broken.IgnoresContext, "contract/cancelled", broken.Options{}},
	{broken.CancelIsDenied, "contract/cancelled", broken.Options{}},
	{broken.LosersLeaveRecords, "garbage/refused", broken.Options{}},
	{broken.LosersLeaveOthers, "garbage/refused", broken.Options{}},
	{broken.ExpiresNever, "time/expiry", broken.Options{}},
	{broken.EachClientAlone, "contract/one-store", broken.Options{}},
	{broken.NamelessTraits, "contract/traits", broken.Options{}},
	{broken.ExpiredStaysHeld, "contract/acquire-expired", broken.Options{}},
	{broken.VacantIsHeld, "contract/acquire-vacant", broken.Options{KeepsFloor: true}},
	{broken.RemembersAttempts, "contract/acquire-same-attempt-late", broken.Options{}},
	{broken.CancelPoisons, "contract/cancelled-harmless", broken.Options{}},
	{broken.SmallLimits, "contract/claim-limits", broken.Options{}},
	{broken.OneCallAtATime, "contract/concurrent-use", broken.Options{}},
	{broken.ErrorsAreTwoThings, "contract/errors", broken.Options{}},
	{broken.AbsentIsVacant, "contract/get-absent", broken.Options{}},
	{broken.ExpiryChangesRevision, "contract/over-expired", broken.Options{Hidden: true}},
	{broken.ReleaseExpiredIsNothing, "contract/release-own-expired", broken.Options{}},
	{broken.ReleaseExpiredIsNothing, "garbage/expired", broken.Options{}},
	{broken.SealIsDropped, "contract/seal", broken.Options{}},
	{broken.SealIsForce, "contract/seal-over", broken.Options{}},
	{broken.SealKeepsToken, "tokens/seal", broken.Options{}},
	{broken.TokensOverflow, "contract/min-token-limit", broken.Options{KeepsFloor: true}},
	{broken.OneWatchOnly, "watch/many", broken.Options{}},
	{broken.WatchEndsWithRenewal, "watch/renewals", broken.Options{}},
	{broken.LeakOnClose, "watch/leaves-nothing", broken.Options{}},
	{broken.RenewalsLookLikeChanges, "tokens/renewals", broken.Options{}},

	// Cases about the lease, where a store alone can break them.
	{broken.ExpiresEarly, "fault/cut-off-errors", broken.Options{}},
	{broken.ExpiresEarly, "fault/cut-off-hang", broken.Options{}},
	{broken.ExpiresEarly, "fault/cut-off-stall", broken.Options{}},
	{broken.ExpiresEarly, "waiting/dead-holder", broken.Options{}},
	{broken.RenewExtendsNothing, "lease/renewed", broken.Options{}},
	{broken.NotAtomic, "waiting/many", broken.Options{}},
	{broken.WatchMissesTakeover, "loss/observed", broken.Options{}},
	{broken.WatchMissesRelease, "waiting/release", broken.Options{}},
	{broken.HidesExpired, "lease/questions", broken.Options{}},
	{broken.CannotReleaseExpired, "lease/release-others-expired", broken.Options{}},
	{broken.RenewRecreates, "loss/deleted", broken.Options{}},
}

// TestCaught breaks the store in one way after the other. A suite that cannot
// fail is worse than none.
func TestCaught(t *testing.T) {
	var wg sync.WaitGroup
	free := make(chan struct{}, 16) // most of them wait
	for _, c := range caught {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			t.Run(c.by+"/"+string(c.defect), func(t *testing.T) { catch(t, c.by, broken.New(c.options, c.defect)) })
		})
	}
	wg.Wait()
}

// catch runs one case, which must fail for the reason it is there for.
func catch(t *testing.T, name string, w *broken.World, opts ...conformance.Option) {
	one := find(t, name)
	opts = append(opts, conformance.WithCases(one), conformance.WithPatience(2*time.Second))
	for r := range conformance.Check(t.Context(), func() (backend.Store, error) { return w.Open(), nil }, opts...) {
		switch {
		case r.Err == nil:
			t.Fatalf("not caught: %v", r)
		case strings.Contains(r.Err.Error(), "panic") || strings.Contains(r.Err.Error(), "hung"):
			t.Fatalf("caught by accident: %v", r)
		case !strings.Contains(r.String(), one.Rule) || !strings.Contains(r.String(), one.Why):
			t.Errorf("the failure does not state its rule:\n%v", r)
		}
		t.Log(r)
	}
}

func find(t *testing.T, name string) conformance.Case {
	for _, c := range conformance.Cases() {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("there is no case %s", name)
	return conformance.Case{}
}

// TestDeclarations checks that what is declared must be so, and what is so must
// be declared.
func TestDeclarations(t *testing.T) {
	for _, c := range []struct {
		by      string
		options broken.Options
		suite   []conformance.Option
	}{
		{"names/list-declared", broken.Options{NoList: true}, nil},
		{"names/list-declared", broken.Options{}, []conformance.Option{conformance.Without(conformance.List)}},
		{"contract/seal-declared", broken.Options{NoSeals: true}, nil},
		{"contract/seal-declared", broken.Options{}, []conformance.Option{conformance.Without(conformance.Seals)}},
		{"tokens/min-token-declared", broken.Options{NoMinToken: true}, nil},
		{"tokens/min-token-declared", broken.Options{}, []conformance.Option{conformance.Without(conformance.MinToken)}},
		{"contract/seal", broken.Options{NoSeals: true}, []conformance.Option{conformance.Without(conformance.Seals), conformance.Strict()}},
	} {
		catch(t, c.by, broken.New(c.options), c.suite...)
	}
}

// TestLeaks checks the one thing that Check does not.
func TestLeaks(t *testing.T) {
	w := broken.New(broken.Options{}, broken.LeakOnClose)
	one := conformance.Cases()[0]
	for range conformance.Check(t.Context(), func() (backend.Store, error) { return w.Open(), nil }, conformance.WithCases(one)) {
	}
	const pkg = "github.com/leasehold/leasehold/conformance/internal/broken"
	if left := conformance.LeftRunning(pkg, 0); len(left) == 0 {
		t.Error("goroutines that the store left running were not noticed")
	}
}

// TestCasesAreWritten checks what a reader of a failure relies on.
func TestCasesAreWritten(t *testing.T) {
	names := make(map[string]bool)
	for _, c := range conformance.Cases() {
		if names[c.Name] {
			t.Errorf("there are two cases %s", c.Name)
		}
		names[c.Name] = true
		if c.Group() == c.Name || c.Rule == "" || c.Why == "" || c.Run == nil {
			t.Errorf("%s is incomplete", c.Name)
		}
		if strings.HasSuffix(c.Rule, ".") || strings.HasSuffix(c.Why, ".") {
			t.Errorf("%s: rule and why are clauses, without a full stop", c.Name)
		}
	}
	for _, c := range caught {
		delete(names, c.by)
	}
	t.Logf("cases that no broken store proves: %s", strings.Join(slices.Sorted(maps.Keys(names)), ", "))
}
