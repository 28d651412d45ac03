// Package redis keeps leases in Redis 7 (or newer) and Valkey.
//
//	client := goredis.NewClient(&goredis.Options{Addr: "127.0.0.1:6379", ContextTimeoutEnabled: true})
//	store := redis.New(client, "jobs:")
//	store, err := backend.Open(ctx, "redis://user:password@127.0.0.1:6379/0?prefix=jobs:")
//
// A URL is one of go-redis's: redis:// or rediss:// (with TLS), a number of the
// database, its parameters (pool_size, read_timeout, …); with addr=HOST:PORT, once or
// more, or several hosts, or cluster=true, it is that of a cluster, with
// master_name=NAME that of Sentinels. Beside these there are prefix=, retention=,
// replicas= and replicas-timeout= (see the options), and for TLS cacert=FILE,
// cert=FILE, key=FILE and server-name=NAME.
//
// # Promises
//
// The full contract of package backend on one server, or on each primary of a
// cluster. Each verb is one script, so one round trip, and only the server's clock
// counts: a duration begins when the server grants or renews it, in milliseconds.
//
// A name has two keys in one slot. prefix{name} is the record, a hash that redis-cli
// shows. prefix{name}:alive is a string with the tenure's TTL, "token milliseconds
// holder": while it is there, the name is held by whom it says, whatever the record
// says; when it has gone, the record is Expired, until somebody acquires or releases
// it. In names, braces, percent signs and control characters become %XX.
//
// Durations in it are milliseconds, and the token tells when it was granted
// (date -d @SECONDS), unless there is a field that does.
//
// A token is the greatest of: the last one of this name plus one, the server's time
// in microseconds, and the token floor, if a claim has brought one, plus one. So tokens
// rise over release and expiry because the last one is known, and over FLUSHALL,
// eviction, a restart without data and a failover that has lost something because time
// goes on. What it takes for a token to fall is both: the record is lost, and the clock
// is behind what it was at the grant, by more time than has passed since.
//
// What is sent again finds what it has done: go-redis sends a command again when no
// reply has come. An acquire is then the same attempt, and a release that finds what
// it has released itself is not told that the tenure was lost.
//
// # What it leaves
//
// The record of an expired tenure, and the last token of a released one, vanish after
// the retention, a day by default (at most 100 s later). A record with a token floor,
// which migrations bring, stays.
//
// # Waiting
//
// Every change is published on a sharded channel, prefix{name}. All watches of a Store
// share one connection for each server, and what one of them has read. A release tells
// that the name is free, so a waiter needs no look; expiry is found by a timer on what
// was left by the server's clock. Behind that stands a slow look, after half a minute
// at most, for messages that were lost, and on a connection that is new everything is
// looked at anew. Whoever may not subscribe looks once a second.
//
// Changes that a person makes (DEL) are not published, and found by the next look or
// renewal.
//
// # What replication can lose
//
// Redis answers before its replicas have what it has done. When a primary fails and a
// replica takes over (Sentinel, a cluster, most managed services), what it had not got
// yet is lost: a grant, a renewal or a release. Then
//
//   - the name can be granted to somebody else while the first holder, who knows
//     nothing of that, goes on until its next renewal tells it ErrLost, or its
//     deadline: two hold for a part of a duration at most;
//   - the second has the greater token, if the new primary's clock is not behind the
//     old one's by more than the failover took. What checks tokens refuses the first;
//   - a lost release keeps the name until the duration is over, and a seal that is lost
//     lets the name be acquired in two stores.
//
// A primary that is cut off from the others and not from its clients goes on granting
// until it notices, likewise (min-replicas-to-write bounds that).
//
// WithReplicas makes a grant and a renewal wait until replicas have them. Then a
// failover to one of those forgets nothing that was told. It is not a proof: which
// replica takes over is decided without asking whether it had answered, and what it had
// got it may have lost again by a restart. Seals are written like that wherever there
// is a replica. Whoever needs more should use etcd or Kubernetes.
//
// # What else ends exclusion early
//
//   - Eviction: a maxmemory-policy other than noeviction evicts live leases.
//   - A restart without persistence, or with an append-only file that is not synced
//     always: what was forgotten can be granted again at once. Let the server stay down
//     for as long as leases last, or use appendfsync always. Redis (7.0) and Valkey (8.1)
//     also forget at a restart all that scripts have written, whatever the append-only
//     file has, if the default user is off: it is loaded with that user's rights. Leave
//     it on, with a password.
//   - The server's wall clock is set forward: every tenure ends that much earlier. It is
//     set back: it lasts that much longer.
//   - FLUSHALL, DEL, or a restored backup. Holders are told at their next renewal.
//
// In all these cases tokens fence.
//
// leasehold doctor looks for the dangerous ones.
//
// When maxmemory is reached (with noeviction) nothing new is granted, and what is held
// can be renewed and released.
//
// # Clients
//
// The client of New stays its owner's. Calls return when their contexts end, whatever
// its options; with ContextTimeoutEnabled, which Open sets, it gives up at that time,
// too, and calls with contexts that cannot be cancelled need no second goroutine. A
// Ring is refused, as its servers know nothing of each other. In a cluster each name
// depends on one primary; but with Redis's default (cluster-require-full-coverage yes)
// all names wait while the slots of one are not served. While a slot moves from one
// primary to another, free names in it wait, too (TRYAGAIN), and with WithReplicas also
// those that have moved already. Calls that are made while
// others are under way travel together in pipelines.
//
// # Permissions
//
// The smallest rule, for the prefix "jobs:"
//
//	ACL SETUSER worker on >password resetchannels '~jobs:{*' '&jobs:{*' +evalsha +eval
//	  +get +set +del +exists +type +getrange +hget +hmget +hgetall +hlen +hset +hdel
//	  +pexpire +pttl +time +spublish +ssubscribe +sunsubscribe +scan
//
// A cluster's client needs +cluster|slots besides, a database other than 0 +select,
// WithReplicas +wait, seals (which migrations write) +info and +wait, leasehold doctor
// +info and +cluster|info to tell all it can. Without ssubscribe, or the channels,
// waiters look once a second; without spublish, or the channels, nobody is told of what
// this user does before the next look, half a minute later at most; without scan nobody
// can list; without hget, hlen and hdel releases take a little longer. Note that since
// Redis 7 a new user has no channels.
package redis
