package redis

import (
	"crypto/sha1"
	_ "embed"
	"encoding/hex"
	"strconv"
	"strings"
	"sync/atomic"
)

// Each verb is one script, so one round trip.
var (
	//go:embed scripts/state.lua
	stateLua string
	//go:embed scripts/get.lua
	getLua string
	//go:embed scripts/acquire.lua
	acquireLua string
	//go:embed scripts/renew.lua
	renewLua string
	//go:embed scripts/release.lua
	releaseLua string
)

// The first line of a script makes Redis check it before it runs: that it may write
// here, so that a replica answers nothing, and, but for those that allow it, that
// there is memory, so that it fails as a whole. Redis before 7.0 cannot read the line.
//
// What reads the whole state stands where a script needs it, as most do not get there:
// to define a function in Lua takes about as long as to read a key.
func scriptsOf(channel string) scripts {
	return scripts{
		acquire: newScript("#!lua\n", acquireLua, channel),
		get:     newScript("#!lua flags=allow-oom\n", getLua, channel),
		renew:   newScript("#!lua flags=allow-oom\n", renewLua, channel),
		release: newScript("#!lua flags=allow-oom\n", releaseLua, channel),
	}
}

type scripts struct{ acquire, get, renew, release *script }

// channelSuffix keeps the channels of databases apart, which are those of the server.
func channelSuffix(db int) string {
	if db == 0 {
		return ""
	}
	return "@" + strconv.Itoa(db)
}

type script struct{ source, sha string }

func newScript(first, source, channel string) *script {
	source = first + strings.Replace(source, "--%state\n", stateLua, 1)
	if channel != "" {
		source = strings.ReplaceAll(source, "'SPUBLISH', record,", "'SPUBLISH', record .. '"+channel+"',")
	}
	sum := sha1.Sum([]byte(source))
	return &script{source, hex.EncodeToString(sum[:])}
}

// sending is an argument of a command, and tells how often that was written, which
// go-redis may do again where no reply has come.
type sending struct{ n atomic.Int32 }

// MarshalBinary is called each time the command is written.
func (s *sending) MarshalBinary() ([]byte, error) {
	return strconv.AppendInt(nil, int64(s.n.Add(1)), 10), nil
}

// String is for those who log commands.
func (s *sending) String() string { return strconv.Itoa(s.times()) }

func (s *sending) times() int { return int(s.n.Load()) }
