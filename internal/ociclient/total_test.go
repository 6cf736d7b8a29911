package ociclient

import (
	"net/http"
	"testing"
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
