package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// lookTime bounds the wait for all places of one look. What is behind a mount that hangs,
// such as a user's FUSE or NFS, would otherwise keep every question waiting (R17).
const lookTime = 2 * time.Second

// eyes look at places, each in a goroutine of its own. One that has not come back
// is not looked at again before it has, so that a mount that hangs holds one goroutine,
// and is waited for once.
type eyes struct {
	root string
	wait time.Duration

	// turn is held for each look, so that what is away at its beginning hangs.
	turn sync.Mutex
	mu   sync.Mutex           // of what follows
	away map[string]time.Time // what has not come back, since when
}

func newEyes(root string) *eyes {
	return &eyes{root: root, wait: lookTime, away: map[string]time.Time{}}
}

// look is what one look at one place has found, or why it has found nothing.
type look[T any] struct {
	found T
	err   error
}

// each calls see for all keys at once and waits for the results until the time is over.
// The error of one that is not back says since when. The caller has the turn.
func each[T any](e *eyes, keys []string, see func(i int) T) []look[T] {
	all := make([]look[T], len(keys))
	done := make([]chan T, len(keys))
	e.mu.Lock()
	for i, key := range keys {
		if _, ok := e.away[key]; ok {
			continue
		}
		e.away[key] = time.Now()
		done[i] = make(chan T, 1)
		go func() {
			found := see(i)
			e.mu.Lock()
			delete(e.away, key)
			e.mu.Unlock()
			done[i] <- found
		}()
	}
	e.mu.Unlock()
	late := time.NewTimer(e.wait)
	defer late.Stop()
	over := false
	for i, key := range keys {
		if done[i] != nil && !over {
			select {
			case all[i].found = <-done[i]:
				continue
			case <-late.C:
				over = true
			}
		}
		select {
		case all[i].found = <-done[i]: // none comes from one that is nil
		default:
			all[i].err = e.late(key)
		}
	}
	return all
}

func (e *eyes) late(key string) error {
	e.mu.Lock()
	since, ok := e.away[key]
	e.mu.Unlock()
	if !ok {
		return fmt.Errorf("%s could not be looked at in time", key)
	}
	return fmt.Errorf("%s cannot be looked at: the file system there has not answered since %s; repair or unmount it, or name the runtimes with the setting runtime",
		key, since.UTC().Format(time.RFC3339))
}

// instances is the function of that name, in time. Without the list of users there are
// the places of the machine.
func (e *eyes) instances() ([]place, error) {
	type listed struct {
		all []place
		err error
	}
	one := each(e, []string{filepath.Join(e.root, users)}, func(int) listed {
		all, err := instances(e.root)
		return listed{all, err}
	})[0]
	if one.err != nil {
		return without(users), one.err
	}
	return one.found.all, one.found.err
}

// look looks at all places.
func (e *eyes) look() (s sight) {
	e.turn.Lock()
	defer e.turn.Unlock()
	all, err := e.instances()
	if err != nil {
		s.doubts = append(s.doubts, err)
	}
	seen := map[string]bool{}
	for _, one := range each(e, e.keys(all), func(i int) sight { return all[i].look(e.root) }) {
		if one.err != nil {
			s.doubts = append(s.doubts, one.err)
		}
		s.doubts = append(s.doubts, one.found.doubts...)
		for _, at := range one.found.sockets {
			if !seen[at.real] {
				seen[at.real] = true
				s.sockets = append(s.sockets, at)
			}
		}
	}
	return s
}

// watch has every directory watched in which a socket may appear, or a directory on
// the way to one. What cannot be watched is found by the look that time asks for.
func (e *eyes) watch(add func(dir string)) {
	e.turn.Lock()
	defer e.turn.Unlock()
	all, _ := e.instances()
	keys := append(e.keys(all), filepath.Join(e.root, users))
	for i := range keys {
		keys[i] += " (to watch it)" // beside a look at it
	}
	each(e, keys, func(i int) struct{} {
		if i == len(all) {
			add(filepath.Join(e.root, users))
			return struct{}{}
		}
		for _, dir := range all[i].directories(e.root) {
			add(dir)
		}
		return struct{}{}
	})
}

func (e *eyes) keys(all []place) []string {
	keys := make([]string, len(all))
	for i, p := range all {
		keys[i] = filepath.Join(e.root, p.socket)
	}
	return keys
}

// resolved is the function of that name; a path that cannot be followed in time is
// taken as it is.
func (e *eyes) resolved(path string) string {
	e.turn.Lock()
	defer e.turn.Unlock()
	one := each(e, []string{path}, func(int) string { return resolved(path) })[0]
	if one.err != nil {
		return path
	}
	return one.found
}

// listens reports whether there is a socket at a path. It is an error if that cannot
// be found out.
func (e *eyes) listens(path string) (bool, error) {
	e.turn.Lock()
	defer e.turn.Unlock()
	one := each(e, []string{path + " (to forget it)"}, func(int) look[bool] {
		st, err := os.Stat(path)
		if absent(err) {
			return look[bool]{}
		}
		return look[bool]{found: err == nil && st.Mode().Type() == fs.ModeSocket, err: err}
	})[0]
	return one.found.found, errors.Join(one.err, one.found.err)
}
