package unit

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestParseDuration_ReadsWhatPeopleWrite(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "90": 90 * time.Second, "1.5": 1500 * time.Millisecond,
		"2h": 2 * time.Hour, "1h30m": 90 * time.Minute, "30d": 720 * time.Hour, "2w": 336 * time.Hour,
		"1d12h": 36 * time.Hour, "1.5h": 90 * time.Minute, " 5m ": 5 * time.Minute, "100ms": 100 * time.Millisecond,
		"3µs": 3 * time.Microsecond,
	} {
		got, err := ParseDuration(text)
		if err != nil || time.Duration(got) != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", text, time.Duration(got), err, want)
		}
	}
}

func TestParseDuration_SaysWhatIsWrong(t *testing.T) {
	for text, why := range map[string]string{
		"": "it is empty", "-1h": "it is negative", "2 hours": "is no unit", "h": "no number with a unit",
		"1x": `"x" is no unit`, "1.2.3s": "is no number", "9999999999999h": "too long",
		"106751d106751d": "too long", "99999999999999999999999": "too long", "+5s": "no number with a unit",
	} {
		_, err := ParseDuration(text)
		if err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "want for example") {
			t.Errorf("ParseDuration(%q): error %v, want one with %q and an example", text, err, why)
		}
	}
}

func TestDuration_StringIsShortAndReadsBack(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 2 * time.Hour: "2h", 90 * time.Second: "1m30s", 24 * time.Hour: "24h",
		time.Minute: "1m", 10 * time.Minute: "10m", 20 * time.Second: "20s", time.Hour + time.Second: "1h0m1s",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%v renders as %q, want %q", d, got, want)
		}
	}
}

func TestParseSize_BinaryAndDecimalUnits(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "512": 512, "1K": 1024, "1kb": 1000, "64MiB": 64 << 20, "1.5GiB": 3 << 29, "10 MB": 10e6, "1TB": 1e12,
	} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "-1", "MiB", "1XB", "99999999TiB", "1.2.3M"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
}

// TestParseSize_TheFormsThatPeopleType reads a size in each of them.
func TestParseSize_TheFormsThatPeopleType(t *testing.T) {
	for i, letter := range "KMGTP" {
		binary := Size(50) << (10 * (i + 1))
		decimal := Size(50)
		for range i + 1 {
			decimal *= 1000
		}
		for suffix, want := range map[string]Size{"": binary, "i": binary, "iB": binary, "B": decimal} {
			for _, text := range []string{"50" + string(letter) + suffix, "50 " + string(letter) + suffix, strings.ToLower("50" + string(letter) + suffix), "50.0" + string(letter) + suffix} {
				if got, err := ParseSize(text); err != nil || got != want {
					t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
				}
			}
		}
	}
	for _, text := range []string{"50i", "50iB", "50Gib/s", "50GiBB", "50 G B", "50Bi", "1e3", "50E"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
}

func TestSize_String(t *testing.T) {
	for s, want := range map[Size]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 64 << 20: "64 MiB", 1<<30 - 1: "1 GiB", 5 << 40: "5 TiB",
	} {
		if got := s.String(); got != want {
			t.Errorf("Size(%d) renders as %q, want %q", int64(s), got, want)
		}
	}
}

func TestDuration_InJSONIsATextOrSeconds(t *testing.T) {
	for text, want := range map[string]time.Duration{`"2h"`: 2 * time.Hour, `90`: 90 * time.Second, `0`: 0, `1.5`: 1500 * time.Millisecond, `"30d"`: 720 * time.Hour} {
		var d Duration
		if err := json.Unmarshal([]byte(text), &d); err != nil || time.Duration(d) != want {
			t.Errorf("%s gave %v, %v; want %v", text, time.Duration(d), err, want)
		}
	}
	for _, text := range []string{`-1`, `"-1h"`, `"x"`, `""`, `true`, `[]`, `{}`, `1e300`} {
		var d Duration
		if err := json.Unmarshal([]byte(text), &d); err == nil {
			t.Errorf("%s gave %v, want an error", text, time.Duration(d))
		}
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"0", "2h", "1d12h", "30d", "1.5", "-1", "9999999w", "µs", "1µs"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if d < 0 {
			t.Fatalf("%q gave %d", s, d)
		}
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Fatalf("%q renders as %q, which reads as %d, %v; want %d", s, d, again, err, d)
		}
	})
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"0", "64MiB", "1.5G", "10 MB", "-1", "99999TB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseSize(s)
		if err != nil {
			return
		}
		text, _ := v.MarshalText()
		if again, err := ParseSize(string(text)); v < 0 || err != nil || again != v {
			t.Fatalf("%q gave %d, which renders as %q and reads as %d, %v", s, v, text, again, err)
		}
		_ = v.String()
	})
}
