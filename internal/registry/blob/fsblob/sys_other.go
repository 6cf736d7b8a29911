//go:build unix && !linux

package fsblob

import (
	"errors"
	"math"
	"os"
)

func startWriteback(*os.File, int64, int64) {}

// diskSpace knows no limit here: a full disk is met when a write fails.
func diskSpace(string) (free, total int64, err error) { return math.MaxInt64, math.MaxInt64, nil }

func allocate(*os.File, int64) error { return errors.ErrUnsupported }
