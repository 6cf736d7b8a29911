package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// floor tells what the part of the work costs that nobody can leave out: as many
// writers as there are nodes hash what they write to new files, at the rate of
// the links and as fast as they can. What the table has above it is for sending,
// taking and checking. On virtual machines, memory that was not used for a while
// is dear, and so is waking up: paced, the same work costs several times as much.
func (b *bench) floor(nodes int) error {
	if !b.only.MatchString("floor") {
		return nil
	}
	for _, paced := range []bool{true, false} {
		cost, err := b.writers(nodes, paced)
		if err != nil {
			return err
		}
		how := "as fast as they can"
		if paced {
			how = fmt.Sprintf("at %d MB/s each", b.rate/1e6)
		}
		fmt.Printf("\n%d writers that only hash what they write to new files, %s: %.1f CPU s/GiB.\n", nodes, how, cost)
	}
	return nil
}

// writers returns CPU seconds a GiB.
func (b *bench) writers(nodes int, paced bool) (float64, error) {
	dir, err := os.MkdirTemp(b.dir, "f-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }() // the whole tree goes at the end anyway
	pieces := int(b.size / piece.Size)
	before := ownCPU()
	g, ctx := errgroup.WithContext(b.ctx)
	for n := range nodes {
		g.Go(func() error {
			f, err := os.Create(filepath.Join(dir, fmt.Sprint(n)))
			if err != nil {
				return err
			}
			defer f.Close()
			p, h, began := make([]byte, piece.Size), sha256.New(), time.Now()
			for i := range pieces {
				if due := time.Duration(float64(i) * piece.Size / float64(b.rate) * float64(time.Second)); paced {
					select {
					case <-time.After(due - time.Since(began)):
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				_, hashErr := h.Write(p)
				if _, err := f.WriteAt(p, int64(i)*piece.Size); err != nil {
					return errors.Join(err, hashErr)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return (ownCPU() - before).Seconds() / (float64(nodes) * float64(b.size) / (1 << 30)), nil
}

func ownCPU() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
