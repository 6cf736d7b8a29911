package fetch_test

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
)

// TestR17_ClientsThatLeftAStallingUpstreamHoldNothing: 200 of them held 600 files
// and connections for ten minutes.
func TestR17_ClientsThatLeftAStallingUpstreamHoldNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := 0
		done := make(chan struct{}, 200)
		up := &source{name: "upstream", fill: func(ctx context.Context, _ fetch.Want, _ *piece.Blob) error {
			<-ctx.Done()
			done <- struct{}{}
			return ctx.Err()
		}}
		s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
		before := descriptors(t)
		for i := range 200 {
			ctx, leave := context.WithCancel(t.Context())
			b, err := s.Get(ctx, want(content(1000+i)))
			if err != nil {
				t.Fatal(err)
			}
			leave()
			b.Close()
		}
		synctest.Wait()
		if n := descriptors(t) - before; n > 20 {
			t.Errorf("%d files are open for 200 downloads that brought nothing", n)
		}
		began := time.Now()
		for ended < 200 {
			<-done
			ended++
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("they went on for %v", took)
		}
		synctest.Wait()
		if n := s.store.Usage().Blobs; n != 0 {
			t.Errorf("%d blobs are left of them", n)
		}
	})
}

// TestLinger_ASlowDownloadGoesOn as long as it brings something.
func TestLinger_ASlowDownloadGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := content(20 * piece.Size)
		up := &source{name: "upstream", fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
			for i := range b.Pieces() {
				select {
				case <-time.After(4 * time.Second):
				case <-ctx.Done():
					return ctx.Err()
				}
				if err := write(ctx, b, all, i, i, "upstream"); err != nil {
					return err
				}
			}
			return nil
		}}
		s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
		ctx, leave := context.WithCancel(t.Context())
		b, err := s.Get(ctx, want(all))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		leave()
		if err := b.Wait(t.Context(), b.Pieces()-1); err != nil || !b.Complete() {
			t.Errorf("complete %v, %v", b.Complete(), err)
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
