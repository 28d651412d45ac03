// Package etcd keeps leases in etcd v3.
//
//	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:2379"}})
//	store := etcd.New(client, "/jobs/")
//	store, err := backend.Open(ctx, "etcd://user:password@a:2379,b:2379,c:2379/jobs?cacert=FILE&cert=FILE&key=FILE")
//
// Further parameters of the URL: server-name=NAME, tls=true (with the system's
// certificate authorities).
//
// # Promises
//
// The full contract of package backend, on etcd's own linearizability: every grant
// and every release is one Txn that compares revisions, every read is answered by a
// quorum, and no request is served by a member that knows of no leader.
//
// A name has two keys side by side: the record, JSON that etcdctl shows, and alive
// (the same key and a NUL), which is bound to an etcd lease of its own. alive is the
// tenure. While it is there, the name is held; when etcd deletes it, by its own
// clock, the record stays and is Expired, until somebody acquires or releases it.
//
// A token is the revision of the granting Txn (alive's mod_revision), plus the
// token floor if a claim has brought one. etcd never gives a revision twice, so
// tokens rise over release, expiry, deletion by whomever and re-creation. Two things
// end that. An etcd restored from a backup counts on from there, unless it is
// restored with etcdutl's --bump-revision. And a floor lies in the record: whoever
// deletes that, or garbles it and then uses force, deletes the floor.
//
// Durations are whole seconds. etcd makes at least one and a half election timeouts
// of any: 2 s with its own settings, which Traits.MinDuration says until a grant has
// taught more.
//
// # What it costs
//
// Acquire of a free name is two round trips (the etcd lease, the Txn), release is
// two (the Txn, the revocation of the etcd lease), and each of the four is one entry
// in etcd's log. Renew is two round trips (the etcd lease, and a read of both keys,
// because an etcd lease can be renewed whose key is gone), and no entry. An Acquire
// of a name that was not free when last seen looks first, so waiters hardly ever write
// what is refused; and the etcd lease of a refused attempt is kept for the next, or
// runs out.
//
// A call that may be sent again tries members one after the other, each with half
// of the time that is left. A grant is sent again only as the same Attempt: what
// arrives second finds the first. A release that was sent again and finds the tenure
// over says that its outcome is unknown, and not that the tenure was lost.
//
// etcd's client sends a Txn again by itself where a member, or a proxy, answers that
// a request was cancelled or had no time left, and the caller has not given up. Then
// a release may say ErrLost of what it has released itself, and Guarded that nothing
// was done. No etcd is known to answer so about what it has done.
//
// # After an unknown outcome
//
// A Txn whose reply was lost may be applied later. It needs its etcd lease for
// that, which nobody renews until the tenure is known to be had: after one duration
// at most it is gone, and the tenure with it.
//
// # Expiry
//
// etcd's leader looks every half second for leases whose time is over, so Expired is
// up to a second late. A new leader begins the time of all leases anew, and adds an
// election timeout: a dead holder's lease may then last for two durations and more.
// A live holder gains nothing by that; it stops by its own clock.
//
// # Watch
//
// A watch begins before the state is read, so that nothing lies in between. All
// watches share a stream of the client.
// Behind it stands a slow look, after the record's duration (between 2 s and a
// minute): where it finds what no event has told, all watches move to another stream,
// and so to another member. Clients that Open makes ask a silent connection every
// 10 s whether it is alive; give a client of your own DialKeepAliveTime for that.
//
// # Guard
//
// [Store.Guard] is a condition for transactions of your own: that the tenure is the
// current one. What a stale holder writes etcd then refuses, whatever clocks say.
// [Store.Guarded] is such a transaction.
//
// # Names and prefixes
//
// Keys are the prefix and the name. A prefix begins and ends with a slash, added
// where missing, so "jobs", "/jobs" and the path of etcd://host/jobs are the same;
// slashes, percent signs and control characters of a name become %XX.
//
// # Permissions
//
// A holder needs readwrite on the prefix:
//
//	etcdctl role grant-permission ROLE readwrite --prefix=true /jobs/
//
// # Limits
//
// A person who deletes the alive key, or revokes its etcd lease, ends the tenure:
// the holder is told by the watch event or its next renewal, and until then two may
// believe to hold; tokens and Guard still fence. Deleting or rewriting the record
// alone is safer: the tenure cannot be renewed any more, but keeps others out until
// its etcd lease has run out.
//
// Whoever can write to the prefix can take any lease. etcd before 3.4.31 and 3.5.13
// can end leases early or late after a change of leaders, before 3.4.42, 3.5.28 and
// 3.6.9 a member that was paused may answer a read with the past; leasehold doctor
// says so. One etcd lease a name is right for tens of thousands of names, not for
// millions.
//
// The client is required at v3.5.10, the first whose gRPC can be in one program
// with today's: older ones need a google.golang.org/genproto that was split since.
package etcd
