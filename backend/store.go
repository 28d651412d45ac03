package backend

import (
	"context"
	"iter"
	"math"
	"time"
)

// Forever is the duration of a record that never expires: a [Seal]. No time
// rule applies to it. Any other duration above [MaxDuration] is [ErrInvalid].
//
// It is the largest value that a Kubernetes Lease's leaseDurationSeconds (an
// int32) can hold, so that one record means the same in every store.
const Forever = math.MaxInt32 * time.Second

// MaxDuration is the longest duration a claim may ask for, Forever aside.
const MaxDuration = 365 * 24 * time.Hour

// MaxToken is the largest token a store grants: 2⁵³ − 1, the largest integer
// that a float64 counts exactly, and with it every JSON parser and Redis's Lua.
const MaxToken = 1<<53 - 1

// Store keeps leases. Its methods may be called concurrently, by any number of
// clients in any number of processes; see the package documentation for what
// they promise. Package memory holds the smallest complete example.
//
// A method returns within its context; after the context has ended it may still
// write (the outcome is unknown), but it does not block.
type Store interface {
	// Get returns the record of name, vacant or held, or ErrNotFound if there is
	// none. An expired record stays visible, with Expired set, until somebody
	// acquires or releases it.
	Get(ctx context.Context, name string) (Record, error)

	// Acquire grants the claim and begins a new tenure with a new token.
	//
	// Without Claim.Over it succeeds if there is no record, or it is vacant, or
	// Expired. With Over it succeeds if and only if the record's Revision is
	// still Over, whoever holds it: a compare-and-swap, and whoever uses it
	// answers for it. A refusal is a *HeldError with the record that was found
	// (only its Name where none was).
	//
	// The same Attempt again, while its tenure is still the current one and has not
	// expired, gets the same tenure, whose duration begins anew: the promise that it
	// lasts holds for both calls. The same Holder with another Attempt is refused
	// like anybody.
	Acquire(ctx context.Context, claim Claim) (Record, error)

	// Renew starts the duration anew if rec's tenure (its Holder and Token) is
	// still the current one and has not expired; otherwise it returns ErrLost. It
	// keeps the token; only a migrating store may return a greater one, when the
	// tenure has moved. rec may be any record of the tenure, also one with an
	// old Revision; an edit of the record by somebody else is not a loss.
	Renew(ctx context.Context, rec Record) (Record, error)

	// Release ends rec's tenure if it is still the current one; otherwise it
	// returns ErrLost. With rec.Expired set it also needs rec.Revision unchanged.
	// It deletes the record where it may, and vacates it otherwise.
	Release(ctx context.Context, rec Record) error

	// Traits tells what this store can do. It does no I/O. What it returns may
	// grow stricter as the store learns about its server.
	Traits() Traits

	// Close frees what the Store owns and ends its watches. It does not touch any
	// record, and not a client that the caller handed in. Calls made after it
	// fail with ErrInvalid. A second Close returns nil.
	Close() error
}

// Watcher is implemented by stores that are told of changes. Callers use
// [Watch], which falls back to polling.
type Watcher interface {
	// Watch yields the present state of name, then the newest one after each
	// change; states in between may be merged, the last never. Absence is a
	// Record with only Name set. It yields once more when Expired turns true,
	// where the store judges that.
	//
	// A non-nil error is final. When ctx ends the sequence just stops. Breaking
	// off frees everything. Lost connections are the store's to mend.
	Watch(ctx context.Context, name string) iter.Seq2[Record, error]
}

// Lister is implemented by stores that can enumerate names. Callers use [List].
type Lister interface {
	// List yields the record of every name with the prefix, in no order. A
	// record that cannot be read is yielded with only its Name, and an error that
	// is ErrCorrupt; the sequence goes on. Any other error is final.
	List(ctx context.Context, prefix string) iter.Seq2[Record, error]
}

// Record is what a store keeps under a name.
type Record struct {
	Name        string
	Holder      string            // identity of the holder; "" means vacant
	Token       uint64            // fencing token of this tenure; 0: the holder has none (a foreign client) and never fences
	Attempt     string            // the Claim.Attempt that was granted
	Duration    time.Duration     // granted: what one renewal lasts; Forever for a seal
	AcquiredAt  time.Time         // wall clock, for people and for foreign clients
	RenewedAt   time.Time         // likewise, but that it changes tells observers of a renewal; a store whose renewals write nothing computes it
	Transitions int64             // how often the holder changed
	Metadata    map[string]string // what the holder wants others to see; fixed for the tenure
	Seal        *Seal             // not nil: the name has moved to another store
	Expired     bool              // by the store's own clock
	Remaining   time.Duration     // upper bound until expiry by the store's clock when it answered; 0 and not Expired: not known
	Revision    string            // opaque; changes with every write to the record
}

// Vacant reports whether nobody holds the record, or there is none.
func (r Record) Vacant() bool { return r.Holder == "" && r.Seal == nil }

// Live reports whether somebody holds the record and the store does not call it
// expired.
func (r Record) Live() bool { return !r.Vacant() && !r.Expired }

// SameTenure reports whether both records belong to one tenure of one holder.
// Records that carry no token (a foreign client's) never do.
func (r Record) SameTenure(o Record) bool {
	return r.Name == o.Name && r.Holder == o.Holder && r.Holder != "" && r.Token == o.Token && r.Token != 0
}

// Seal marks a name that has moved to another store. A sealed record never
// expires, so that a client which knows nothing of migration sees a lease held
// for ever and stays out.
type Seal struct {
	To           string        // a label of the store the name moved to; never a URL with credentials
	Epoch        uint64        // which move of this name it was; 0 reserves the target
	Heir         string        // the holder that moves along, "" if nobody held the name
	HeirDuration time.Duration // how long the heir may still act on its old tenure
}

// Claim asks for a tenure.
type Claim struct {
	Name     string
	Holder   string            // required
	Attempt  string            // random for each acquire; a second arrival of the same attempt is the same acquire; "": never the same
	Duration time.Duration     // rounded up to Traits.Granularity
	Metadata map[string]string // see CheckClaim for the limits
	Over     string            // if set, the only condition: the record is still at this Revision
	MinToken uint64            // the granted token must be greater
	Seal     *Seal             // set only to seal; Duration is then Forever
}

// Traits are the properties in which stores differ.
type Traits struct {
	Name            string        // "kubernetes"
	Namespace       string        // "team-a": what keeps its names apart from another's
	MinDuration     time.Duration // shorter claims are ErrInvalid, never silently raised
	Granularity     time.Duration // Duration is rounded up to this; Record.Duration tells what was granted
	ExpirySlack     time.Duration // how late Expired may turn true after the end of a tenure; Forever: never
	RenewalsVisible bool          // every renewal changes Revision and RenewedAt; without it an unchanged record proves nothing
}
