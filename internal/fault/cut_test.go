package fault_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/fairway-registry/fairway/internal/fault"
)

// TestR16_AMessageRepeatsTheBeginningOfALongText: a client's value does not fill logs and
// terminals. What is as long as a digest is shown as a whole.
func TestR16_AMessageRepeatsTheBeginningOfALongText(t *testing.T) {
	long := strings.Repeat("ä", 1<<20)
	for _, format := range []string{"%s is too long", "%q is too long", "%v is too long"} {
		msg := fault.New(fault.Invalid, format, long).Public
		if len(msg) > 200 || !utf8.ValidString(msg) || strings.Contains(msg, `\x`) || !strings.Contains(msg, "…") || !strings.Contains(msg, strings.Repeat("ä", 60)) {
			t.Errorf("%s: %d bytes: %.200q", format, len(msg), msg)
		}
	}
	d := "sha512:" + strings.Repeat("a", 128)
	if msg := fault.New(fault.Invalid, "%s is unknown", d).Public; !strings.Contains(msg, d+" ") {
		t.Errorf("a digest is cut: %s", msg)
	}
}
