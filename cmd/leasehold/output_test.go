package main

import (
	"testing"
	"time"

	"github.com/leasehold/leasehold/backend"
)

func TestReadable(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                             "0s",
		300 * time.Microsecond:        "0s",
		250 * time.Millisecond:        "250ms",
		1500 * time.Millisecond:       "1.5s",
		12 * time.Second:              "12s",
		59900 * time.Millisecond:      "1m0s",
		60 * time.Second:              "1m",
		185 * time.Second:             "3m5s",
		2*time.Hour + 4*time.Minute:   "2h4m",
		2*time.Hour + 59*time.Second:  "2h",
		75*time.Hour + 59*time.Minute: "3d3h",
		backend.MaxDuration:           "365d",
		backend.Forever:               "for ever",
		-12 * time.Second:             "-12s",
	} {
		if got := readable(d); got != want {
			t.Errorf("%d is %q, want %q", d, got, want)
		}
	}
}

func TestPublicURL(t *testing.T) {
	for raw, want := range map[string]string{
		"file:///var/lib/leases":                                                "file:///var/lib/leases",
		"file:///a%23b%20c?shared=allow":                                        "file:///a%23b%20c?shared=allow",
		"memory:jobs":                                                           "memory:jobs",
		"redis://user:word@host:6379/0?prefix=a":                                "redis://host:6379/0?prefix=a",
		"redis://:word@host/0?password=word&prefix=a":                           "redis://host/0?prefix=a",
		"etcd://host/p?username=me&clientkey=/k&Auth_Token=t":                   "etcd://host/p",
		"kubernetes://ns?context=c&kubeconfig=/home/me/k":                       "kubernetes://ns?context=c&kubeconfig=%2Fhome%2Fme%2Fk",
		"etcd://me:word@a:2379,b:2379,[::1]:1/p?cert=/c&key=/k":                 "etcd://a:2379,b:2379,[::1]:1/p?cert=%2Fc&key=%2Fk",
		"etcd://me:wo,rd@a,b/p":                                                 "etcd://a,b/p",
		"etcd://a,b":                                                            "etcd://a,b",
		"etcd://me:wo%2Frd@a,b/p":                                               "etcd://a,b/p",
		"etcd://me:12/word@a:1,b:2/p":                                           "",
		"etcd://me:12?word@a:1,b:2/p":                                           "",
		"etcd://me:12#word@a:1,b:2/p":                                           "",
		"etcd://me:1,2/word@a:1/p":                                              "",
		"etcd://me:12@3/word@a:1/p":                                             "",
		"etcd://me:word@a:x,b/p":                                                "",
		"etcd://a,,b":                                                           "",
		"kubernetes://ns?kubeconfig=/home/me@work/k":                            "kubernetes://ns?kubeconfig=%2Fhome%2Fme%40work%2Fk",
		"file:///home/me@work":                                                  "file:///home/me@work",
		"redis:me:word@host":                                                    "redis:host",
		"redis://host/0#word":                                                   "redis://host/0",
		"redis://host":                                                          "redis://host",
		"redis://host:6379/3?db=3&pool_size=5&prefix=jobs:":                     "redis://host:6379/3?db=3&pool_size=5&prefix=jobs%3A",
		"rediss://me:word@h:1/0?cacert=/a&cert=/c&key=/k":                       "rediss://h:1/0?cacert=%2Fa&cert=%2Fc&key=%2Fk",
		"rediss://h?key=/k&server-name=redis.example":                           "rediss://h?key=%2Fk&server-name=redis.example",
		"redis://me:word@a:1?addr=b:2&addr=c:3&prefix=x":                        "redis://a:1?addr=b%3A2&addr=c%3A3&prefix=x",
		"redis://me:word@a:1,b:2,[::1]:3/0?cluster=true":                        "redis://a:1,b:2,[::1]:3/0?cluster=true",
		"redis://a:1?addr=me:word%40b:2":                                        "redis://a:1?addr=b%3A2",
		"redis://s:word@a:1,b:2/0?master_name=m&username=me&password=word&db=1": "redis://a:1,b:2/0?db=1&master_name=m",
		"redis://a:1/0?sentinel_username=me&sentinel_password=word&master_name=m&retention=1h": "redis://a:1/0?master_name=m&retention=1h",
		"redis://a:1/0?Password=word&PASSWORD=word&key=/k&Key=word&replicas=1":                 "redis://a:1/0?key=%2Fk&replicas=1",
		"redis://a:1/0?password=wo;rd&prefix=x":                                                "redis://a:1/0?prefix=x",
		"redis://:wo%2Frd@a:1/0":                                                               "redis://a:1/0",
		"redis://:wo/rd@a:1/0":                                                                 "",
		"redis://me:12/word@a:1/0":                                                             "",
		"redis://me:12?word@a:1/0":                                                             "",
		"redis://me:12#word@a:1/0":                                                             "",
		"redis://me:wo@rd@a:1/0":                                                               "redis://a:1/0",
		"redis://wo/rd@a":                                                                      "",
		"redis://me:12/word@a:1,b:2/0?cluster=true":                                            "",
		"redis://me:word@a:1,b:2/0?addr=me:word@c":                                             "",
		"redis:me:wo@rd@a":                                                                     "redis:a",
		"%":                                                                                    "",
	} {
		if got := publicURL(raw); got != want {
			t.Errorf("%s becomes %s, want %s", raw, got, want)
		}
	}
}

func TestPlain(t *testing.T) {
	for s, want := range map[string]string{"a b/ö 🦊": "a b/ö 🦊", "\x1b[2J": `"\x1b[2J"`, "a\nb": `"a\nb"`} {
		if got := plain(s); got != want {
			t.Errorf("%q is shown as %s, want %s", s, got, want)
		}
	}
}
