// Package kubernetes keeps leases in Lease objects of the API group
// coordination.k8s.io/v1, in one namespace of a cluster.
//
//	cfg, err := rest.InClusterConfig()
//	store, err := kubernetes.New(cfg, "team-a")
//	store, err := backend.Open(ctx, "kubernetes://team-a")                            // in a pod, or with kubectl's configuration
//	store, err := backend.Open(ctx, "kubernetes://team-a?kubeconfig=FILE&context=prod")
//
// Further parameters of the URL: create-namespace=true, vacate=true,
// expiry-margin=90s.
//
// # Promises
//
// The full contract of package backend. Every write is a compare-and-swap by uid
// and resourceVersion; reads are answered by a quorum. Without contention acquire,
// renew and release are one request each. A lease is an object that kubectl shows
// and that client-go's leader election shares, in both directions: the fields of
// the spec are written as client-go writes them, and read with any of them
// missing. What they cannot say is in annotations under leasehold.github.io.
//
// A token is the resourceVersion that the granting write replaced, plus 1 (of a
// new object its own), plus the token floor if a claim has brought one. The API
// server never gives a resourceVersion twice, so tokens rise over renewal, release,
// deletion by whomever and re-creation. Two things end that. Restoring the
// cluster's etcd from a backup turns its counter back: tokens begin again where the
// backup was. And a token floor lies in the object: whoever deletes that, or
// garbles it and then uses force, deletes the floor. The token of a
// new object is annotated by its first renewal; until then other clients see an
// upper bound of it, which rises if somebody edits the object. A holder that is
// another program has no token: 0.
//
// Durations are whole seconds; one second is the least. Below three, mind that
// client-go compares renewals by whole seconds when it is among the candidates.
//
// # Expiry
//
// Get calls a record Expired when the API server's clock says that its last
// renewal is longer ago than its duration and a margin of a minute (the Date of
// the reply, and the time in managedFields of whoever wrote spec.renewTime). The
// margin is for several API servers whose clocks differ, and for a proxy that puts a
// Date of its own; see [WithExpiryMargin]. So a lease whose holder died long ago is
// taken at once. One that died just now is followed by observation: package lease
// takes over when it has seen no renewal for the duration. The clocks of holders
// and waiters need not agree with anything.
//
// # Release
//
// Release deletes the object if Leasehold created it and no other program has used
// it since. Otherwise, and with finalizers, a token floor, [WithVacate], or a role
// that may not delete, it is vacated as client-go does it: the holder is "", the
// object and its leaseTransitions stay.
//
// # Requests and failures
//
// Requests are in protobuf unless rest.Config.ContentType says otherwise. The
// client's own rate limit is switched off, and so are its retries. A request
// that the server has refused unseen (429) is repeated after the time the server
// asks for, if the context allows; one with an unknown outcome never. Every
// request is bounded (10 s, or what the context leaves). One that was not answered
// in time makes the next use a new connection, since with HTTP/2 a connection that
// is dead without having been closed would swallow that too.
//
// [Store.Watch] is a LIST and a WATCH of the one object, or of the namespace from
// when more than a handful of names are watched at once until none is, on
// connections of their own. Behind it
// stands a slow poll: a GET after half of a duration without a renewal. Where the
// role lacks list or watch it polls every two seconds ([WithPollInterval]), says so
// once to the logger, and tries again every few minutes.
//
// # Permissions
//
// A holder needs get, create and update on leases; delete lets it remove what it
// created, list and watch let it wait without polling, list lets it list. A role
// for certain resourceNames works with objects that exist already. The folder
// manifests has the roles. leasehold doctor tells what is missing.
//
// # Names
//
// A lease name that is a DNS-1123 subdomain is the object's name. Any other is
// kept in an annotation of an object whose name begins with leasehold--, shows
// what can be read of it, and ends with a hash.
//
// # Limits
//
// An object with spec.strategy, whose holder the API server chooses (coordinated
// leader election), is not acquired. Whoever may update leases can take any of
// them, and a client-go holder that has lost contact may act longer than its lease
// lasts: exclusion is as good as the worst program that shares the object. Deleting
// a live record ends exclusion until the holder's next renewal or watch event;
// tokens still fence. The object must hold the annotations: at most 16 KiB of
// metadata and 256 KiB with everybody's.
//
// client-go is required at v0.31, the first whose Lease type has spec.strategy: an
// older one would drop the field on every write, and could not see what it must
// refuse. The API server may be any with coordination.k8s.io/v1 (1.14).
package kubernetes
