//go:build !linux

package boottime

import (
	"errors"
	"time"
)

const suspend = false

var origin = time.Now()

func now() time.Duration { return time.Since(origin) + 1 }

func bootID() (string, error) {
	return "", errors.New("this system does not tell one boot from another")
}

func afterFunc(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
