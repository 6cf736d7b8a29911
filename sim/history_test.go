package sim

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// bench is what the histories of a test share.
type bench struct {
	root     string // on a memory disk if there is one: fsync is not what is tested here
	driver   *crashDriver
	template []byte
	next     int // directory: a history that ends well leaves an empty one to the next
}

var registered *crashDriver // database/sql knows drivers by name, once for a process

func TestMain(m *testing.M) {
	d, err := newCrashDriver()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	registered = d
	sql.Register(driverName, d)
	os.Exit(m.Run())
}

func newBench(t *testing.T) *bench {
	t.Helper()
	parent := ""
	if fi, err := os.Stat("/dev/shm"); err == nil && fi.IsDir() {
		parent = "/dev/shm"
	}
	root, err := os.MkdirTemp(parent, "fairway-sim-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	template, err := newTemplate(root)
	if err != nil {
		t.Fatal(err)
	}
	return &bench{root: root, driver: registered, template: template}
}

// seeded is a source of uuids that replays.
func seeded(seed uint64) {
	uuid.SetRand(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}))
}

// history runs fn on a new world and returns what was violated, and the log.
func (b *bench) history(seed uint64, fn func(*sim)) (log []string, err error) {
	dir := filepath.Join(b.root, strconv.Itoa(b.next))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	seeded(seed)
	defer uuid.SetRand(nil)
	w, err := newWorld(dir, b.driver, b.template, false)
	if err != nil {
		return nil, err
	}
	s := &sim{w: w, model: newModel(), pool: newPool(), rng: rand.New(rand.NewPCG(seed, 0))}
	defer func() {
		log = s.log
		if p := recover(); p != nil {
			v, ok := p.(violation)
			if !ok {
				v = violation{fmt.Errorf("panic: %v\n%s", p, debug.Stack())}
			}
			err = v.error
			_ = w.kill(false) // whatever state it is in
			b.next++          // and nobody uses it again
			return
		}
		err = w.close()
	}()
	fn(s)
	return nil, nil
}

// steps is a random history in which the steps in skip are left out. Each step
// has a random source of its own, so that leaving one out changes the others
// as little as can be.
func steps(seed uint64, n int, skip map[int]bool) func(*sim) {
	return func(s *sim) {
		if seed%3 != 0 { // each third history is undisturbed
			s.crashes = 0.08
		}
		if seed%2 == 0 {
			s.disturb = 0.5
		}
		for i := range n {
			if skip[i] {
				continue
			}
			s.rng = rand.New(rand.NewPCG(seed, uint64(i)+1))
			s.step(false)
		}
		s.rng = rand.New(rand.NewPCG(seed, uint64(n)+1))
		s.finish()
	}
}

func length(seed uint64) int { return 15 + int(seed%31) }

// shrink leaves out steps as long as the history still fails.
func (b *bench) shrink(seed uint64, n int) (skip map[int]bool, log []string, err error) {
	skip = map[int]bool{}
	for size := n / 2; size > 0; size /= 2 {
		for from := 0; from < n; from += size {
			try := map[int]bool{}
			for i := range n {
				if skip[i] || i >= from && i < from+size {
					try[i] = true
				}
			}
			if len(try) == len(skip) {
				continue
			}
			if l, e := b.history(seed, steps(seed, n, try)); e != nil {
				skip, log, err = try, l, e
			}
		}
	}
	return skip, log, err
}

func environ(t *testing.T, name string, standard int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return standard
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// TestR1toR7_RandomHistories runs SIM_HISTORIES histories with consecutive
// seeds from SIM_FROM on, or the one of SIM_SEED.
func TestR1toR7_RandomHistories(t *testing.T) {
	b := newBench(t)
	from, histories := environ(t, "SIM_FROM", 1), environ(t, "SIM_HISTORIES", 300/sparse)
	if seed := environ(t, "SIM_SEED", 0); seed != 0 {
		from, histories = seed, 1
	}
	for seed := uint64(from); seed < uint64(from+histories); seed++ {
		n := length(seed)
		log, err := b.history(seed, steps(seed, n, nil))
		if err == nil {
			continue
		}
		t.Errorf("seed %d: %v\nreplay: SIM_SEED=%d go test ./sim -run RandomHistories", seed, err, seed)
		if _, shortLog, shortErr := b.shrink(seed, n); shortErr != nil {
			log, err = shortLog, shortErr
		}
		t.Fatalf("the shortest history found that fails:\n%s\n%v", strings.Join(log, "\n"), err)
	}
}
