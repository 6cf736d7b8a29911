package mirror

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/fairway-registry/fairway/internal/fault"
)

// TestR17_LargeListsShareABudget: what does not fit into it is refused in time, small lists
// never are, and what was read gives its share back.
func TestR17_LargeListsShareABudget(t *testing.T) {
	m := &Mirror{lists: semaphore.NewWeighted(2 * listMax), listWait: time.Millisecond}
	read := func(size int64) (int, func(), error) {
		content, release, err := m.readList(t.Context(), io.LimitReader(strings.NewReader(strings.Repeat("x", listMax+2)), size))
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
