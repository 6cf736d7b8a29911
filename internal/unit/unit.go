// Package unit owns durations and sizes as people write them: "2h", "30d",
// "0", "64MiB". Flags, environment, configuration files and the admin API all
// read them here, so that one spelling works everywhere.
//
// It refuses negative values, values that overflow, and a number with a unit it
// does not know, and says what it wants instead.
package unit

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time of zero or more.
type Duration time.Duration

// Size is a number of bytes.
type Size int64

// ParseDuration reads what time.ParseDuration reads, and also days and weeks
// ("30d", "2w", "1d12h") and a bare number of seconds ("0", "90", "1.5").
func ParseDuration(s string) (Duration, error) {
	text := strings.TrimSpace(s)
	if text == "" {
		return 0, durationError(s, "it is empty")
	}
	if text[0] == '-' {
		return 0, durationError(s, "it is negative")
	}
	if digits(text) == len(text) {
		return scale(s, text, time.Second)
	}
	var sum Duration
	for rest := text; rest != ""; {
		n := digits(rest)
		u := n
		for u < len(rest) && !digit(rest[u]) {
			u++
		}
		if n == 0 {
			return 0, durationError(s, "it is no number with a unit")
		}
		unit, ok := durationUnits[rest[n:u]]
		if !ok {
			return 0, durationError(s, fmt.Sprintf("%q is no unit", rest[n:u]))
		}
		part, err := scale(s, rest[:n], unit)
		if err != nil {
			return 0, err
		}
		if sum += part; sum < 0 {
			return 0, durationError(s, "it is too long")
		}
		rest = rest[u:]
	}
	return sum, nil
}

const day = 24 * time.Hour

var durationUnits = map[string]time.Duration{
	"ns": time.Nanosecond, "us": time.Microsecond, "µs": time.Microsecond, "ms": time.Millisecond,
	"s": time.Second, "m": time.Minute, "h": time.Hour, "d": day, "w": 7 * day,
}

func digit(c byte) bool { return '0' <= c && c <= '9' || c == '.' }

// digits returns how many bytes of s, from its start, belong to a number.
func digits(s string) int {
	n := 0
	for n < len(s) && digit(s[n]) {
		n++
	}
	return n
}

// scale multiplies a decimal number with a unit: exactly where it is whole.
func scale(all, number string, unit time.Duration) (Duration, error) {
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n > math.MaxInt64/int64(unit) {
			return 0, durationError(all, "it is too long")
		}
		return Duration(n * int64(unit)), nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, durationError(all, fmt.Sprintf("%q is no number", number))
	}
	f = math.Round(f * float64(unit))
	if f >= math.MaxInt64 {
		return 0, durationError(all, "it is too long")
	}
	return Duration(f), nil
}

func durationError(s, why string) error {
	return fmt.Errorf("%q is no duration: %s; want for example 90s, 2h, 30d or 0", clip(s), why)
}

// String renders d without the zero parts that time.Duration shows: "2h".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	if d == 0 {
		return "0"
	}
	return s
}

// Set, with Type and String, makes a *Duration the value of a flag.
func (d *Duration) Set(s string) error {
	v, err := ParseDuration(s)
	if err == nil {
		*d = v
	}
	return err
}

// Type names the kind of value in help texts.
func (d *Duration) Type() string { return "duration" }

// MarshalText renders d as String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseDuration reads.
func (d *Duration) UnmarshalText(b []byte) error { return d.Set(string(b)) }

// UnmarshalJSON reads a text or a number of seconds.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		return d.Set(text)
	}
	var number json.Number
	if json.Unmarshal(b, &number) == nil && number != "" {
		return d.Set(number.String())
	}
	return errors.New("it is no duration; want a text such as \"2h\" or \"30d\", or a number of seconds")
}

// ParseSize reads a number of bytes: "512", "64MiB", "1.5GiB", "10MB". KB, MB,
// GB, TB and PB are powers of 1000; KiB …, Ki … (as Kubernetes writes them) and the
// bare letters K, M, G, T and P are powers of 1024.
func ParseSize(s string) (Size, error) {
	text := strings.TrimSpace(s)
	n := digits(text)
	if n == 0 {
		return 0, sizeError(s, "it does not begin with a number")
	}
	factor, ok := sizeUnits[strings.ToUpper(strings.TrimSpace(text[n:]))]
	if !ok {
		return 0, sizeError(s, fmt.Sprintf("%q is no unit", strings.TrimSpace(text[n:])))
	}
	if v, err := strconv.ParseInt(text[:n], 10, 64); err == nil {
		if v > math.MaxInt64/factor {
			return 0, sizeError(s, "it is too large")
		}
		return Size(v * factor), nil
	}
	f, err := strconv.ParseFloat(text[:n], 64)
	if errors.Is(err, strconv.ErrSyntax) {
		return 0, sizeError(s, fmt.Sprintf("%q is no number", text[:n]))
	}
	f = math.Round(f * float64(factor))
	if f >= math.MaxInt64 {
		return 0, sizeError(s, "it is too large")
	}
	return Size(f), nil
}

var sizeUnits = map[string]int64{
	"": 1, "B": 1,
	"K": 1 << 10, "KI": 1 << 10, "KIB": 1 << 10, "KB": 1e3,
	"M": 1 << 20, "MI": 1 << 20, "MIB": 1 << 20, "MB": 1e6,
	"G": 1 << 30, "GI": 1 << 30, "GIB": 1 << 30, "GB": 1e9,
	"T": 1 << 40, "TI": 1 << 40, "TIB": 1 << 40, "TB": 1e12,
	"P": 1 << 50, "PI": 1 << 50, "PIB": 1 << 50, "PB": 1e15,
}

func sizeError(s, why string) error {
	return fmt.Errorf("%q is no size: %s; want for example 64MiB, 10GB or 0", clip(s), why)
}

// String renders s for people, in powers of 1024, with three digits at most
// after rounding: "64 MiB", "1.5 GiB".
func (s Size) String() string {
	if s < 1024 {
		return strconv.FormatInt(int64(s), 10) + " B"
	}
	v, unit := float64(s), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if v /= 1024; v < 999.95 {
			break
		}
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + unit
}

// Set, with Type and String, makes a *Size the value of a flag.
func (s *Size) Set(text string) error {
	v, err := ParseSize(text)
	if err == nil {
		*s = v
	}
	return err
}

// Type names the kind of value in help texts.
func (s *Size) Type() string { return "size" }

// MarshalText renders s exactly, with the largest unit that divides it.
func (s Size) MarshalText() ([]byte, error) {
	units := []string{"", "KiB", "MiB", "GiB", "TiB"}
	v, i := int64(s), 0
	for v != 0 && v%1024 == 0 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return []byte(strconv.FormatInt(v, 10) + units[i]), nil
}

// UnmarshalText reads what ParseSize reads.
func (s *Size) UnmarshalText(b []byte) error { return s.Set(string(b)) }

// clip keeps a text that came from outside from filling an error message.
func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}
