// Package servers finds or makes the real servers that tests run against, and
// starts them.
//
// The first that works is taken:
//
//   - a cluster of the user's: LEASEHOLD_TEST_KUBECONFIG names a kubeconfig,
//     LEASEHOLD_TEST_KUBECONTEXT one of its contexts.
//     LEASEHOLD_TEST_ETCD_ENDPOINTS is host:port,... of the members of an etcd;
//     if it wants them, LEASEHOLD_TEST_ETCD_USER and _PASSWORD are of one who
//     may do everything, and _CACERT, _CERT and _KEY name files; with _CACERT
//     TLS is spoken. LEASEHOLD_TEST_REDIS_ADDRS is host:port of a Redis, or
//     host:port,... of all nodes of a cluster, with _USER, _PASSWORD, _CACERT,
//     _CERT and _KEY likewise. It is used as it is: it cannot be paused, stopped
//     or cut off, and its requests cannot be counted.
//   - the public images, where there is a Docker engine that has or can pull
//     them. LEASEHOLD_TEST_KUBE_APISERVER_IMAGE, LEASEHOLD_TEST_ETCD_IMAGE and
//     LEASEHOLD_TEST_REDIS_IMAGE name others, "none" says not to look.
//   - programs of this machine: from KUBEBUILDER_ASSETS, else from the PATH.
//     redis-server or valkey-server comes from the PATH, from version 7.0 on.
//   - programs built from the modules in integration/build, which needs only Go
//     and, for the API server, minutes. They are kept in .cache/servers.
//     LEASEHOLD_TEST_BUILD=off forbids to build what is not kept yet. Redis
//     cannot be built.
//
// Programs are put into images, with the libraries they need, and run as
// containers where there is a Docker engine, else as processes;
// LEASEHOLD_TEST_DOCKER=off says not to use one. Redis with sentinels always
// runs as processes. Processes cannot be cut off from each other. Tests that need what the servers
// at hand cannot do are skipped: see Must.
//
// With LEASEHOLD_REQUIRE_SERVERS=1 a test whose server cannot be had fails,
// otherwise it is skipped with the reason.
//
// Nothing is left behind but the images and .cache/servers: a server is gone
// after Close. What a killed test binary leaves is labelled with its run, and
// Sweep removes it once that run is dead; processes die with it by themselves,
// where the system can do that.
package servers
