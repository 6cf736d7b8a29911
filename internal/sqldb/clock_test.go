package sqldb

import "testing"

func TestR11_WhereAClockBegins(t *testing.T) {
	for what, c := range map[string]struct{ wall, seen, jumpMax, at, behind int64 }{
		"nothing seen":                 {wall: 1000, jumpMax: 10, at: 1000},
		"set back":                     {wall: 900, seen: 1000, jumpMax: 10, at: 1000},
		"gone on":                      {wall: 1005, seen: 1000, jumpMax: 10, at: 1005},
		"gone on as far as possible":   {wall: 1010, seen: 1000, jumpMax: 10, at: 1010},
		"gone on too far":              {wall: 1011, seen: 1000, jumpMax: 10, at: 1000, behind: 11},
		"gone on, and no limit":        {wall: 9000, seen: 1000, at: 9000},
		"set back, and no limit":       {wall: 900, seen: 1000, at: 1000},
		"set back by more than a jump": {wall: 1, seen: 1000, jumpMax: 10, at: 1000},
	} {
		if at, behind := begin(c.wall, c.seen, c.jumpMax); at != c.at || behind != c.behind {
			t.Errorf("%s: it begins at %d, %d behind; want %d, %d", what, at, behind, c.at, c.behind)
		}
	}
}
