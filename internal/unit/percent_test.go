package unit

import (
	"strings"
	"testing"
)

func TestPercent_ReadsAndRendersTheSame(t *testing.T) {
	for text, want := range map[string]string{"90%": "90%", " 87.5 % ": "87.5%", "90": "90%", "0": "0%", "100%": "100%", "0.5%": "0.5%"} {
		p, err := ParsePercent(text)
		if err != nil || p.String() != want {
			t.Errorf("%q: %s, %v; want %s", text, p, err, want)
		}
		if again, err := ParsePercent(p.String()); err != nil || again != p {
			t.Errorf("%q reads back as %s, %v", text, again, err)
		}
	}
	if p, _ := ParsePercent("80%"); p.Fraction() != 0.8 {
		t.Errorf("80%% is %v of one", p.Fraction())
	}
}

func TestPercent_RefusesWhatIsNoShare(t *testing.T) {
	for text, why := range map[string]string{
		"": "no number", "%": "no number", "ninety": "no number", "-5%": "no number", "1e3%": "no number", "..%": "no number", "NaN": "no number",
		"101%": "more than the whole", "90000": "more than the whole", "0.9": "hundredths",
	} {
		if p, err := ParsePercent(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %s, %v; want an error that says %q", text, p, err, why)
		}
	}
}

func FuzzPercent(f *testing.F) {
	for _, seed := range []string{"90%", "0.9", "100", "1e9", "%%", "٣%"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePercent(text)
		if err != nil {
			return
		}
		if p < 0 || p > 100 {
			t.Fatalf("%q gave %v", text, float64(p))
		}
		if again, err := ParsePercent(p.String()); err != nil || again != p {
			t.Fatalf("%q renders as %q, which reads as %v, %v", text, p.String(), again, err)
		}
	})
}
