package adminapi

import (
	"encoding/json"
	"errors"
)

// rate is a limit in something a second, zero or more.
type rate float64

// UnmarshalJSON reads a number that is not negative.
func (r *rate) UnmarshalJSON(b []byte) error {
	var f float64
	if err := json.Unmarshal(b, &f); err != nil || f < 0 {
		return errors.New("a number of 0 or more is wanted; 0 is no limit")
	}
	*r = rate(f)
	return nil
}

// limit renders r as the checker wants it: 0 for its own limit, negative for none.
func (r *rate) limit() float64 {
	switch {
	case r == nil:
		return 0
	case *r == 0:
		return -1
	}
	return float64(*r)
}
