package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/leasehold/leasehold/backend"
	"github.com/leasehold/leasehold/lease"
)

func newRelease(o *options) *cobra.Command {
	var (
		r      releaser
		prefix string
		yes    bool
	)
	cmd := &cobra.Command{
		Use:   "release NAME | --expired PREFIX",
		Short: "Free a lease that has expired, or take it away from its holder",
		Long: `Free a lease that has expired or whose holder crashed on this machine. A lease
that somebody holds is left alone, unless with

  --force  It is claimed over its holder, kept until that must have noticed and
           stopped (as long as one renewal of its lasts), and then freed. If this
           is interrupted, the lease is freed by itself some time later.
  --now    With --force: do not wait. Its holder may still act, until its next
           renewal tells it; only fencing tokens keep it from doing harm.

A record that cannot be read is removed by --force, too. A name that has moved to
another store is not freed by any of these, since that would let those in who do
not know of the move.

Exit codes:
  0   the lease is free
  75  somebody holds it, and still does
  65  its record cannot be read
  64  usage; 69 the store cannot be reached`,
		Args: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("expired") {
				return oneName(cmd, args)
			}
			if len(args) > 0 || r.force {
				return usageError("--expired takes a PREFIX, and neither a NAME nor --force")
			}
			return nil
		},
		ValidArgsFunction: o.completeNames,
		RunE: func(cmd *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if (yes || r.now) && !r.force {
				return usageError("--yes and --now go with --force")
			}
			if r.force && !yes {
				if !term.IsTerminal(int(os.Stdin.Fd())) {
					return usageError("--force asks before it takes a lease away; without a terminal it needs --yes")
				}
				r.confirm = func(what string) error { return confirm(cmd, what) }
			}
			r.out, r.err, r.asJSON = cmd.OutOrStdout(), cmd.ErrOrStderr(), asJSON
			return o.with(cmd, func(ctx context.Context, store backend.Store) error {
				r.store = store
				if cmd.Flags().Changed("expired") {
					return r.sweep(ctx, prefix)
				}
				return r.release(ctx, args[0])
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.force, "force", false, "take the lease away from whoever holds it, after asking")
	f.BoolVar(&yes, "yes", false, "with --force: do not ask")
	f.BoolVar(&r.now, "now", false, "with --force: do not wait until the holder must have stopped")
	f.StringVar(&prefix, "expired", "", "free all leases with this `PREFIX` that have expired; '' for all")
	o.outputFlag(cmd)
	return cmd
}

func confirm(cmd *cobra.Command, what string) error {
	fmt.Fprintf(cmd.ErrOrStderr(), "%s\nTake it away? Type yes: ", what)
	answer, _ := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if strings.TrimSpace(answer) != "yes" {
		return fail(exitHeld, errors.New("nothing was done"))
	}
	return nil
}

type releaser struct {
	store      backend.Store
	out, err   io.Writer
	asJSON     bool
	force, now bool
	confirm    func(what string) error // nil: do not ask
}

// outcome is what a release reports of one name.
type outcome struct {
	Name   string `json:"name"`
	State  string `json:"was"` // held, free, expired, unreadable
	Holder string `json:"holder,omitempty"`
	Token  uint64 `json:"token,omitempty"`
	Forced bool   `json:"forced,omitempty"`
}

func (r *releaser) report(o outcome) error {
	if r.asJSON {
		return printJSON(r.out, o)
	}
	name := plain(o.Name)
	var err error
	switch {
	case o.State == "free":
		_, err = fmt.Fprintf(r.out, "%s is free\n", name)
	case o.State == "unreadable":
		_, err = fmt.Fprintf(r.out, "%s is free: its record, which could not be read, was removed\n", name)
	case o.Forced:
		_, err = fmt.Fprintf(r.out, "%s is free: it was taken away from %s (token %d)\n", name, plain(o.Holder), o.Token)
	default:
		_, err = fmt.Fprintf(r.out, "%s is free: the time of %s (token %d) was over\n", name, plain(o.Holder), o.Token)
	}
	return err
}

// maxChanges bounds how often a release begins again because the record has
// changed since it was looked at.
const maxChanges = 20

func (r *releaser) release(ctx context.Context, name string) error {
	var asked *backend.Record // whom the user agreed to take it from
	for range maxChanges {
		rec, err := lookUp(ctx, r.store, name)
		var corrupt *backend.CorruptError
		switch {
		case errors.As(err, &corrupt):
			return r.replaceCorrupt(ctx, name, corrupt)
		case err != nil:
			return err
		case rec.Seal != nil:
			return fail(exitHeld, fmt.Errorf("lease %q has moved to %q; it is released there, and its seal here is removed only when nobody uses this store any more", name, rec.Seal.To))
		case rec.Vacant():
			return r.report(outcome{Name: name, State: "free"})
		case rec.Expired:
			err := r.store.Release(ctx, rec)
			if errors.Is(err, backend.ErrLost) {
				continue
			}
			if err != nil {
				return err
			}
			return r.report(outcome{Name: name, State: "expired", Holder: rec.Holder, Token: rec.Token})
		case !r.force:
			return fail(exitHeld, fmt.Errorf("lease %q is %s; --force takes it away", name, held(rec)))
		case asked != nil && !sameHolder(*asked, rec):
			return fail(exitHeld, fmt.Errorf("lease %q has changed hands, it is now %s; nothing was done", name, held(rec)))
		}
		if asked == nil && r.confirm != nil {
			if err := r.confirm(fmt.Sprintf("Lease %s is %s.", plain(name), held(rec))); err != nil {
				return err
			}
		}
		asked = &rec
		err = r.takeAway(ctx, name, rec.Revision, rec.Duration, rec.Holder)
		if errors.Is(err, backend.ErrHeld) {
			continue // renewed, most likely
		}
		if err != nil {
			return err
		}
		return r.report(outcome{Name: name, State: "held", Holder: rec.Holder, Token: rec.Token, Forced: true})
	}
	return fail(exitHeld, fmt.Errorf("lease %q changes faster than it can be released", name))
}

func sameHolder(a, b backend.Record) bool { return a.Holder == b.Holder && a.Token == b.Token }

func (r *releaser) replaceCorrupt(ctx context.Context, name string, corrupt *backend.CorruptError) error {
	if !r.force {
		return fail(exitCorrupt, fmt.Errorf("%w; --force removes it", corrupt))
	}
	if corrupt.Revision == "" {
		return fail(exitCorrupt, fmt.Errorf("%w; this store cannot replace it, remove it by hand", corrupt))
	}
	if r.confirm != nil {
		if err := r.confirm(fmt.Sprintf("The record of lease %s cannot be read (%v).", plain(name), corrupt.Err)); err != nil {
			return err
		}
	}
	// How long its holder may act, if there is one, cannot be read either.
	if err := r.takeAway(ctx, name, corrupt.Revision, 0, "whoever may hold it"); err != nil {
		return err
	}
	return r.report(outcome{Name: name, State: "unreadable", Forced: true})
}

// takeAway claims over the record, waits until its holder must have stopped, and
// frees the name. It is ErrHeld if the record is not at revision any more.
func (r *releaser) takeAway(ctx context.Context, name, revision string, duration time.Duration, victim string) error {
	if duration <= 0 {
		duration = lease.DefaultDuration // a foreign holder that published none
	}
	// The holder's own belief reaches no further than its duration from its last
	// renewal, which was sent before our claim came.
	wait := duration + duration/100
	if r.now {
		wait = 0
	}
	// Long enough to keep everybody out meanwhile even if this process dies.
	keep := min(max(wait+wait/50+5*time.Second, r.store.Traits().MinDuration), backend.MaxDuration)
	rec, err := r.store.Acquire(ctx, backend.Claim{
		Name:     name,
		Holder:   string(lease.NewHolder()),
		Attempt:  rand.Text(),
		Duration: keep,
		Metadata: map[string]string{"leasehold": "released by force"},
		Over:     revision,
	})
	switch {
	case errors.Is(err, backend.ErrHeld):
		return err
	case err != nil && !backend.Definite(err):
		return fmt.Errorf("%w; whether lease %q was taken away is not known, see leasehold get", err, name)
	case err != nil:
		return err
	}
	if err := r.waitFor(ctx, wait, victim); err != nil {
		fmt.Fprintf(r.err, "leasehold: lease %q was taken away, and will be free in %s at most\n", name, readable(keep))
		return err
	}
	err = r.store.Release(ctx, rec)
	if errors.Is(err, backend.ErrLost) {
		return nil // our claim ran out, and somebody has it rightly
	}
	return err
}

// waitFor shows how long it still waits.
func (r *releaser) waitFor(ctx context.Context, wait time.Duration, victim string) error {
	if wait <= 0 {
		return nil
	}
	clock := lease.SystemClock
	end := clock.Now() + wait
	over := make(chan struct{})
	defer clock.AfterFunc(wait, func() { close(over) }).Stop()
	fmt.Fprintf(r.err, "leasehold: taken away; waiting %s until %s must have stopped\n", readable(wait), plain(victim))
	show := make(<-chan time.Time)
	if term.IsTerminal(int(os.Stderr.Fd())) {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		show = t.C
	}
	for {
		select {
		case <-over:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-show:
			fmt.Fprintf(r.err, "\r%s left \x1b[K\r", readable(end-clock.Now()))
		}
	}
}

// sweep frees everything that has expired.
func (r *releaser) sweep(ctx context.Context, prefix string) error {
	found, err := list(ctx, r.store, prefix)
	if err != nil {
		return err
	}
	var failed error
	for _, l := range found {
		switch {
		case l.err != nil:
			fmt.Fprintln(r.err, message(l.err))
			continue
		case l.rec.Vacant() || l.rec.Live() || l.rec.Seal != nil:
			continue
		}
		err := r.store.Release(ctx, l.rec)
		switch {
		case errors.Is(err, backend.ErrLost): // taken, or released, since
		case err != nil:
			fmt.Fprintln(r.err, message(fmt.Errorf("lease %q: %w", l.rec.Name, err)))
			failed = fmt.Errorf("some leases could not be released; the last: %w", err)
		default:
			if err := r.report(outcome{Name: l.rec.Name, State: "expired", Holder: l.rec.Holder, Token: l.rec.Token}); err != nil {
				return err
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return failed
}
