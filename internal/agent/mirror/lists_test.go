package mirror

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/fairway-registry/fairway/internal/fault"
)

// TestR17_LargeListsShareABudget: what does not fit into it is refused in time, small lists
// never are, and what was read gives its share back.
func TestR17_LargeListsShareABudget(t *testing.T) {
	m := &Mirror{lists: semaphore.NewWeighted(2 * listMax), listWait: time.Millisecond}
	read := func(size int64) (int, func(), error) {
		content, release, err := m.readList(t.Context(), io.NopCloser(io.LimitReader(strings.NewReader(strings.Repeat("x", listMax+2)), size)))
		return len(content), release, err
	}
	var all []func()
	for _, size := range []int64{listSmall + 1, listMax} {
		n, release, err := read(size)
		if err != nil || int64(n) != size {
			t.Fatalf("%d of %d bytes, %v", n, size, err)
		}
		all = append(all, release)
	}
	if _, _, err := read(listSmall + 1); !errors.Is(err, fault.Busy) {
		t.Errorf("a list beyond the budget: %v", err)
	}
	for range 100 {
		n, release, err := read(listSmall)
		if err != nil || n != listSmall {
			t.Fatalf("a small list: %d bytes, %v", n, err)
		}
		release()
	}
	all[0]()
	n, release, err := read(listMax + 2)
	if err != nil || n != listMax+1 {
		t.Errorf("with room again: %d bytes, %v", n, err) // one more than may be shows that it is too long
	}
	release()
	if !m.lists.TryAcquire(listMax) {
		t.Error("a share was not given back")
	}
}

// dripping brings so many bytes a second until it is closed.
type dripping struct {
	rate   int
	small  int // bytes that come at once
	closed chan struct{}
}

func (d *dripping) Read(p []byte) (int, error) {
	if n := min(len(p), d.small); n > 0 {
		d.small -= n
		return n, nil
	}
	n := min(len(p), d.rate)
	select {
	case <-d.closed:
		return 0, io.ErrClosedPipe
	case <-time.After(time.Duration(n) * time.Second / time.Duration(d.rate)):
		return n, nil
	}
}

func (d *dripping) Close() error {
	select {
	case <-d.closed:
	default:
		close(d.closed)
	}
	return nil
}

// TestR17_AnUpstreamThatDripsDoesNotHoldTheBudgetForLists, however often a byte comes.
func TestR17_AnUpstreamThatDripsDoesNotHoldTheBudgetForLists(t *testing.T) {
	for rate, enough := range map[int]bool{1000: false, listRate / 2: false, listRate: true, 10 * listRate: true} {
		synctest.Test(t, func(t *testing.T) {
			m := &Mirror{lists: semaphore.NewWeighted(listMax), listWait: time.Millisecond}
			began := time.Now()
			content, release, err := m.readList(t.Context(), &dripping{rate: rate, small: listSmall + 1, closed: make(chan struct{})})
			took := time.Since(began)
			if took > listGrace+(listMax+1)*time.Second/listRate {
				t.Errorf("%d B/s held the budget for %s", rate, took)
			}
			if enough != (err == nil) || !enough && !errors.Is(err, fault.Busy) {
				t.Errorf("%d B/s: %d bytes, %v", rate, len(content), err)
			}
			release()
			if !m.lists.TryAcquire(listMax) {
				t.Errorf("%d B/s: the share was not given back", rate)
			}
		})
	}
}
