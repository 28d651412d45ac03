package etcd

import "github.com/leasehold/leasehold/internal/percent"

// special cannot be in one segment of a path. So a store under /a/ and one under
// /a/b/ never share a key.
const special = "/"

func escape(name string) string { return percent.Escape(name, special) }

func unescape(key string) (name string, ok bool) { return percent.Unescape(key, special) }

// A name has two keys side by side, so that one Range reads both and one Watch
// sees both.

// recordKey is the key of the record, which people read.
func (s *Store) recordKey(name string) string { return s.prefix + escape(name) }

// aliveKey is the key that the tenure lives in. No other lies between it and the
// record's, and no name has it: names have no NUL.
func aliveKey(recordKey string) string { return recordKey + "\x00" }

// endKey is the end of the range of both.
func endKey(recordKey string) string { return recordKey + "\x00\x00" }
