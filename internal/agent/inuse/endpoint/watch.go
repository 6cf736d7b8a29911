package endpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	everyDefault = 10 * time.Second
	// settle is how long events may pour in before the next look.
	settle = 100 * time.Millisecond
)

// Watch calls changed whenever something has appeared where sockets of runtimes
// may be, and every so often, until ctx is done.
func (d *Detector) Watch(ctx context.Context, changed func()) {
	events := make(chan struct{}, 1)
	w, err := newWatcher(events)
	if err != nil {
		d.o.Log.Info("runtimes that appear are looked for from time to time only", "every", d.o.Every, "err", err)
	} else {
		defer w.close()
	}
	tick := time.NewTicker(d.o.Every)
	defer tick.Stop()
	for {
		if w != nil {
			// Before the look, so that nothing appears in between unseen.
			d.eyes.watch(w.add)
		}
		changed()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-events:
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
		}
	}
}

// watcher sends a value when a name appears in one of its directories.
type watcher struct {
	fd     int
	file   *os.File
	ended  chan struct{}
	closed atomic.Bool
}

func newWatcher(events chan<- struct{}) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	w := &watcher{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		buf := make([]byte, 4096)
		for {
			if _, err := w.file.Read(buf); err != nil {
				if errors.Is(err, unix.EINTR) {
					continue
				}
				return // it was closed
			}
			select {
			case events <- struct{}{}:
			default: // one is waiting already
			}
		}
	}()
	return w, nil
}

// add watches a directory; one that is watched already stays so. Who comes back from
// a mount that hung may come after the end.
func (w *watcher) add(dir string) {
	if w.closed.Load() {
		return
	}
	_, _ = unix.InotifyAddWatch(w.fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR)
}

func (w *watcher) close() {
	w.closed.Store(true)
	_ = w.file.Close() // nothing is written to it
	<-w.ended
}
