package unit

import (
	"fmt"
	"strconv"
	"strings"
)

// Percent is a share of a whole, from 0 to 100 %, in hundredths.
type Percent float64

// ParsePercent reads a number with or without the sign: "90%", "87.5 %", "90".
// A bare fraction such as 0.9 is refused: it could mean 90 % or less than one.
func ParsePercent(s string) (Percent, error) {
	number, signed := strings.CutSuffix(strings.TrimSpace(s), "%")
	number = strings.TrimSpace(number)
	if number == "" || digits(number) != len(number) {
		return 0, percentError(s, "it is no number")
	}
	f, err := strconv.ParseFloat(number, 64)
	switch {
	case err != nil:
		return 0, percentError(s, "it is no number")
	case f > 100:
		return 0, percentError(s, "it is more than the whole")
	case f > 0 && f < 1 && !signed:
		return 0, percentError(s, "a share is written in hundredths, with its sign")
	}
	return Percent(f), nil
}

func percentError(s, why string) error {
	return fmt.Errorf("%q is no percentage: %s; want for example 90%%", clip(s), why)
}

// Fraction is p as a part of one.
func (p Percent) Fraction() float64 { return float64(p) / 100 }

// String renders p as ParsePercent reads it back.
func (p Percent) String() string { return strconv.FormatFloat(float64(p), 'f', -1, 64) + "%" }

// Set, with Type and String, makes a *Percent the value of a flag.
func (p *Percent) Set(s string) error {
	v, err := ParsePercent(s)
	if err == nil {
		*p = v
	}
	return err
}

// Type names the kind of value in help texts.
func (p *Percent) Type() string { return "percent" }

// MarshalText renders p as String does.
func (p Percent) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what ParsePercent reads.
func (p *Percent) UnmarshalText(b []byte) error { return p.Set(string(b)) }
