// Package redis measures the store on Redis beside go-redis, redislock, redsync and
// rueidislock.
package redis
