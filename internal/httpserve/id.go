package httpserve

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"net/http"
	"sync/atomic"
)

// idSource makes request ids: a random start, so that those of two processes
// differ, and a count.
type idSource struct {
	start uint64
	next  *atomic.Uint64
}

func newIDSource() idSource {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand since Go 1.24)
	return idSource{start: binary.BigEndian.Uint64(b[:]), next: new(atomic.Uint64)}
}

const requestIDMax = 64

// of returns the id that the client gave, if it is sane, or a new one.
func (s idSource) of(r *http.Request) string {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && saneID(given[0]) {
		return given[0]
	}
	var raw [8]byte
	var text [16]byte
	binary.BigEndian.PutUint64(raw[:], s.start+s.next.Add(1))
	hex.Encode(text[:], raw[:])
	return string(text[:])
}

// saneID keeps what could forge a log line or a header out.
func saneID(s string) bool {
	if s == "" || len(s) > requestIDMax {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}
