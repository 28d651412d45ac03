package kubernetes

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	// reserved begins the names of objects whose lease name no object can have.
	// Lease names that begin with it are encoded too, so that nobody can name
	// another's object.
	reserved = "leasehold--"

	maxReadable = 60 // how much of such a lease name its object name shows
)

// objectName returns the name of the object that keeps a lease: the same where
// that is a name Kubernetes allows (a DNS-1123 subdomain), and otherwise what can
// be read of it, and a hash. The original is in an annotation then.
func objectName(name string) string {
	if len(validation.IsDNS1123Subdomain(name)) == 0 && !strings.HasPrefix(name, reserved) {
		return name
	}
	if r := readable(name); r != "" {
		return reserved + r + "--" + hash(name)
	}
	return reserved + hash(name)
}

// hash is 128 bits of s's, as Kubernetes names may have them.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// encoded reports whether an object's name stands for another lease name.
func encoded(object string) bool { return strings.HasPrefix(object, reserved) }

// readable returns as much of s as part of an object name can show.
func readable(s string) string {
	b := []byte(s[:min(len(s), maxReadable)])
	for i, c := range b {
		switch {
		case 'A' <= c && c <= 'Z':
			b[i] = c + 'a' - 'A'
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		default:
			b[i] = '-'
		}
	}
	return strings.Trim(string(b), "-")
}
