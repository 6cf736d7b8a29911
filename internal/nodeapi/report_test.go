package nodeapi_test

import (
	"strings"
	"testing"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

func TestIsName(t *testing.T) {
	for name, want := range map[string]bool{
		"worker-1": true, "a": true, "10.0.0.1": true, "Node_1.example": true, strings.Repeat("a", nodeapi.NameMax): true,
		"": false, "-a": false, ".": false, "..": false, "a/b": false, "a#b": false, "a b": false, "a:b": false, "é": false, "a\n": false,
		strings.Repeat("a", nodeapi.NameMax+1): false,
	} {
		if got := nodeapi.IsName(name); got != want {
			t.Errorf("%q: %t, want %t", name, got, want)
		}
	}
}
