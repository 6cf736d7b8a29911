package ociclient

import (
	"errors"
	"net/http"
	"testing"

	"github.com/fairway-registry/fairway/internal/fault"
)

func TestR16_TotalIsWhatTheUpstreamSaysOfTheWhole(t *testing.T) {
	for _, c := range []struct {
		status int
		length int64
		rng    string
		want   int64
	}{
		{200, 10, "", 10}, {200, -1, "", -1}, {200, -5, "", -1}, {206, 3, "bytes 1-3/77", 77}, {206, 3, "bytes 1-3/*", -1}, {206, 3, "", -1},
		{206, 3, "bytes 1-3/-7", -1}, {206, 3, "bytes 1-3/99999999999999999999", -1}, {416, 0, "bytes */77", 77}, {416, 0, "", -1}, {404, 9, "bytes 0-1/2", -1},
	} {
		r := Response{Status: c.status, Size: c.length, Header: http.Header{"Content-Range": {c.rng}}}
		if got := r.Total(); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// A part that does not say where it belongs is the upstream's mistake, and not this node's.
func TestOffset_OfAPartWithoutAPlaceIsTheUpstreamsMistake(t *testing.T) {
	for _, rng := range []string{"", "bytes", "bytes -1-2/3", "bytes x-2/3", "items 0-1/2"} {
		r := Response{Status: http.StatusPartialContent, Header: http.Header{"Content-Range": {rng}}}
		if at, err := r.Offset(); !errors.Is(err, fault.Busy) {
			t.Errorf("%q: %d, %v", rng, at, err)
		}
	}
}
