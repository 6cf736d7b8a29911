package blobtest

import (
	"context"
	"errors"
	"sync"

	"github.com/fairway-registry/fairway/internal/registry/blob"
)

// Faulty is a real store whose operations fail or end the world where a test
// says so. Each operation is told to the plan before it takes effect; what the
// plan answers is its fate:
//
//	f := blobtest.NewFaulty(store)
//	f.Plan(blobtest.Nth(7, blobtest.CrashAfter)) // operations count from 1
//	… the code under test …
//	if f.Crashed() { reopen everything over store, without f; check the invariants }
//
// Running the same work with n = 1, 2, 3 … until Count stays below n reaches
// each failpoint once.
//
// After a crash nothing reaches the store: every operation, of open readers and
// appenders too, answers ErrCrashed. The store is then as a killed process
// leaves it. PowerLoss makes it as a loss of power may leave it.
type Faulty struct {
	store blob.Store

	mu      sync.Mutex
	plan    func(Op) Fate
	count   int
	crashed bool
	written map[string]int64 // key with bytes that no Commit covered → durable size, −1 for none
	sizes   map[string]int64 // durable size of keys committed here
}

// Op is an operation about to take effect.
type Op struct {
	N    int // counts from 1, over all kinds
	Kind Kind
	Key  string // of Walk: where it begins
}

// Kind is a kind of operation.
type Kind string

// The kinds. Closing is none: it promises nothing.
const (
	OpAppend Kind = "append" // creates or cuts
	OpWrite  Kind = "write"
	OpCommit Kind = "commit"
	OpOpen   Kind = "open"
	OpRead   Kind = "read"
	OpDelete Kind = "delete"
	OpWalk   Kind = "walk"
	OpMark   Kind = "mark" // Identity
)

// Fate is what becomes of an operation.
type Fate int

// The fates.
const (
	Pass        Fate = iota // it goes well
	Fail                    // it fails with ErrFault and without effect
	FailAfter               // it takes effect and fails with ErrFault
	Full                    // it fails with blob.ErrFull and without effect; a Write writes half
	CrashBefore             // the process ends before it takes effect
	CrashMid                // the process ends in mid Write, half of it done; else as CrashAfter
	CrashAfter              // the process ends after it took effect, before anyone heard
)

// ErrFault is the error of an operation whose fate is Fail or FailAfter.
var ErrFault = errors.New("injected fault")

// ErrCrashed is the error of whatever is tried after a crash.
var ErrCrashed = errors.New("the process has ended (injected crash)")

// NewFaulty wraps store. Without a Plan everything passes.
func NewFaulty(store blob.Store) *Faulty {
	return &Faulty{store: store, written: map[string]int64{}, sizes: map[string]int64{}}
}

// Plan decides over all operations from now on. fn is called without a lock:
// it may block, to hold an operation up until the test has done something
// else, and it may be called by several goroutines at once. nil lets all pass.
func (f *Faulty) Plan(fn func(Op) Fate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan = fn
}

// Nth is a plan: the n-th operation of all has this fate.
func Nth(n int, fate Fate) func(Op) Fate {
	return func(op Op) Fate {
		if op.N == n {
			return fate
		}
		return Pass
	}
}

// NthOf is a plan: the n-th operation of a kind, counted from now on, has this fate.
func NthOf(kind Kind, n int, fate Fate) func(Op) Fate {
	var mu sync.Mutex
	return func(op Op) Fate {
		if op.Kind != kind {
			return Pass
		}
		mu.Lock()
		defer mu.Unlock()
		if n--; n == 0 {
			return fate
		}
		return Pass
	}
}

// Always is a plan: all operations of a kind have this fate.
func Always(kind Kind, fate Fate) func(Op) Fate {
	return func(op Op) Fate {
		if op.Kind == kind {
			return fate
		}
		return Pass
	}
}

// Count is how many operations there were.
func (f *Faulty) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// Crashed reports that an operation met a crash.
func (f *Faulty) Crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashed
}

// Crash ends the process now, between two operations.
func (f *Faulty) Crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashed = true
}

// PowerLoss takes away from the store what was written through f and not made
// durable by a Commit. It implies Crash. Call it when all appenders are idle.
func (f *Faulty) PowerLoss(ctx context.Context) error {
	f.Crash()
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, size := range f.written {
		var err error
		if size < 0 {
			_, err = f.store.Delete(ctx, key)
		} else {
			var a blob.Appender
			if a, err = f.store.Append(ctx, key, size); err == nil {
				err = a.Close()
			}
		}
		if err != nil && !errors.Is(err, blob.ErrNotFound) {
			return err
		}
	}
	clear(f.written)
	return nil
}

// do tells the plan of an operation and has its fate fulfilled. half is asked
// of a Write that is cut off.
func (f *Faulty) do(kind Kind, key string, effect func(half bool) error) error {
	f.mu.Lock()
	if f.crashed {
		f.mu.Unlock()
		return ErrCrashed
	}
	f.count++
	op, plan := Op{N: f.count, Kind: kind, Key: key}, f.plan
	f.mu.Unlock()

	fate := Pass
	if plan != nil {
		fate = plan(op)
	}
	if f.Crashed() {
		return ErrCrashed // meanwhile, by another operation
	}
	switch fate {
	case Fail:
		return ErrFault
	case FailAfter:
		return errors.Join(ErrFault, effect(false))
	case Full:
		if kind == OpWrite {
			return errors.Join(blob.ErrFull, effect(true))
		}
		return blob.ErrFull
	case CrashBefore:
		f.Crash()
		return ErrCrashed
	case CrashMid, CrashAfter:
		err := effect(fate == CrashMid)
		f.Crash()
		return errors.Join(ErrCrashed, err)
	}
	return effect(false)
}

// Append implements blob.Store.
func (f *Faulty) Append(ctx context.Context, key string, offset int64) (blob.Appender, error) {
	var a blob.Appender
	err := f.do(OpAppend, key, func(bool) (err error) {
		if a, err = f.store.Append(ctx, key, offset); err == nil {
			f.dirty(key, offset)
		}
		return err
	})
	if err != nil {
		if a != nil {
			_ = a.Close() // the operation failed all the same
		}
		return nil, err
	}
	return &faultyAppender{f: f, a: a, key: key, end: offset}, nil
}

// dirty notes that what is beyond the durable bytes of key may get lost.
func (f *Faulty) dirty(key string, offset int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	durable, known := f.sizes[key]
	switch {
	case offset == 0:
		// A new object, or one begun again: nothing of it is promised any more.
		durable = -1
		delete(f.sizes, key)
	case !known || offset < durable:
		durable = offset
		f.sizes[key] = offset
	}
	f.written[key] = durable
}

func (f *Faulty) clean(key string, size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.written, key)
	f.sizes[key] = size
}

func (f *Faulty) forget(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.written, key)
	delete(f.sizes, key)
}

type faultyAppender struct {
	f      *Faulty
	a      blob.Appender
	key    string
	end    int64
	failed bool
}

func (a *faultyAppender) Announce(n int64) error { return a.a.Announce(n) }

func (a *faultyAppender) Write(p []byte) (n int, err error) {
	err = a.f.do(OpWrite, a.key, func(half bool) (err error) {
		if half {
			p = p[:len(p)/2]
		}
		n, err = a.a.Write(p)
		a.end += int64(n)
		return err
	})
	if err != nil {
		a.failed = true
	}
	return n, err
}

func (a *faultyAppender) Commit() error {
	if a.failed {
		_ = a.a.Close() // the error of Write is the one that matters
		return errors.New("commit after a failed write")
	}
	err := a.f.do(OpCommit, a.key, func(bool) error {
		err := a.a.Commit()
		if err == nil {
			a.f.clean(a.key, a.end)
		}
		return err
	})
	if err != nil {
		_ = a.a.Close() // over either way
	}
	return err
}

func (a *faultyAppender) Close() error { return a.a.Close() }

// Open implements blob.Store.
func (f *Faulty) Open(ctx context.Context, key string) (blob.Reader, error) {
	var r blob.Reader
	err := f.do(OpOpen, key, func(bool) (err error) {
		r, err = f.store.Open(ctx, key)
		return err
	})
	if err != nil {
		if r != nil {
			_ = r.Close() // nothing was written
		}
		return nil, err
	}
	return &faultyReader{Reader: r, f: f, key: key}, nil
}

// faultyReader shows no File, so that all reads pass through here.
type faultyReader struct {
	blob.Reader
	f   *Faulty
	key string
}

func (r *faultyReader) Read(p []byte) (n int, err error) {
	var readErr error
	err = r.f.do(OpRead, r.key, func(bool) error {
		n, readErr = r.Reader.Read(p)
		return nil
	})
	if err == nil {
		err = readErr // io.EOF as it is: callers compare it
	}
	return n, err
}

// Delete implements blob.Store.
func (f *Faulty) Delete(ctx context.Context, key string) (freed int64, err error) {
	err = f.do(OpDelete, key, func(bool) (err error) {
		if freed, err = f.store.Delete(ctx, key); err == nil {
			f.forget(key)
		}
		return err
	})
	if err != nil {
		freed = 0
	}
	return freed, err
}

// Walk implements blob.Store.
func (f *Faulty) Walk(ctx context.Context, after string, fn func(blob.Info) error) error {
	return f.do(OpWalk, after, func(bool) error {
		return f.store.Walk(ctx, after, func(i blob.Info) error {
			if f.Crashed() {
				return ErrCrashed
			}
			return fn(i)
		})
	})
}

// Identity implements blob.Store.
func (f *Faulty) Identity(ctx context.Context, give string) (id string, err error) {
	err = f.do(OpMark, "", func(bool) (err error) {
		id, err = f.store.Identity(ctx, give)
		return err
	})
	if err != nil {
		return "", err
	}
	return id, nil
}
