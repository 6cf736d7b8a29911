package registry

import (
	"strings"
	"testing"
)

// A URL that is refused may have a password in it (A4).
func TestA4_ARefusedURLIsShownWithoutItsPassword(t *testing.T) {
	for _, c := range []Config{
		{Data: t.TempDir(), Database: "postgres://user:secret@host/db"},
		{Data: t.TempDir(), Storage: "s3://key:secret@bucket/prefix"},
	} {
		_, derr := c.databasePath()
		_, serr := c.storageDir()
		for _, err := range []error{derr, serr} {
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows a password: %v", err)
			}
		}
		if derr == nil && serr == nil {
			t.Error("nothing is refused")
		}
	}
}
