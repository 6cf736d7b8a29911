package fetch

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// ErrClosing says that the node begins no more downloads.
var ErrClosing error = fault.New(fault.Busy, "the node is shutting down")

// IsStalled reports that a download ended because an upstream sent nothing any more.
func IsStalled(err error) bool { return errors.Is(err, errStalled) }

// IsWrongContent reports that a source sent something else than was asked for.
func IsWrongContent(err error) bool {
	var mismatch *piece.MismatchError
	return errors.As(err, &mismatch) || errors.Is(err, ErrMismatch) || errors.Is(err, ErrWrongLength)
}

// refusedError is an upstream's refusal of the one on whose behalf a download was.
type refusedError struct {
	error
	want Want // for its rights; nothing of it is told
}

func (e *refusedError) Unwrap() error { return e.error }

// RefusedAnother reports that a download ended because somebody else than w's
// asker was refused, so that w may be asked for again.
func RefusedAnother(err error, w Want) bool {
	var e *refusedError
	return errors.As(err, &e) && !sameRights(e.want, w)
}

func sameRights(a, b Want) bool {
	return a.Namespace == b.Namespace && a.Repo == b.Repo && a.Authorization == b.Authorization
}

// flight is the one download of a blob.
type flight struct {
	want    Want   // of the one on whose behalf it is made
	others  []Want // of those who joined and might be let in elsewhere; guarded by Fetcher.mu
	b       *piece.Blob
	ctx     context.Context
	cancel  context.CancelFunc
	release func()
	head    *head
	// own says that everything here of b is content of want's upstream; lacked are the
	// pieces that were missing when this was decided. Both are guarded by Fetcher.mu.
	own     bool
	lacked  []int
	noted   bool                   // the index has it so; of fly only
	source  atomic.Pointer[string] // of the Filler at work
	waiting int                    // guarded by Fetcher.mu
	landed  bool                   // guarded by Fetcher.mu
	linger  *time.Timer            // runs while nobody waits; guarded by Fetcher.mu
}

// join makes the asker, for as long as ctx lasts, one who waits for w's
// download, and begins it if there is none. reader is what the asker reads from.
func (f *Fetcher) join(ctx context.Context, w Want, reader *piece.Blob) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosing
	}
	fl, ok := f.flights[w.Digest]
	if ok {
		f.metrics.joined.Inc()
		fl.others = append(fl.others, w)
	} else {
		// The download has its own handle, so that it does not end with the asker's.
		b, err := f.o.Store.Open(ctx, w.Digest)
		if err != nil {
			return fmt.Errorf("open %s for its download: %w", w.Digest, err)
		}
		fl = &flight{want: w, b: b, release: func() {}, head: newHead()}
		// At once, so that nobody hears of the end of the download before.
		if release, ok := b.Filling(); ok {
			fl.release = release
		}
		fl.ctx, fl.cancel = context.WithCancel(f.ctx)
		f.claim(ctx, fl)
		f.flights[w.Digest] = fl
		f.running.Go(func() { f.fly(fl) })
	}
	reader.Attend() // before the download can end
	fl.waiting++
	if fl.linger != nil {
		fl.linger.Stop()
		fl.linger = nil
	}
	context.AfterFunc(ctx, func() { f.leave(fl) })
	return nil
}

func (f *Fetcher) leave(fl *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiting--; fl.waiting == 0 && !fl.landed {
		f.lingerOn(fl, f.o.Linger)
	}
}

// lingerOn looks now and then whether a download for which nobody waits brings
// something. Otherwise it would hold a connection and its files for nobody. f.mu
// is held.
func (f *Fetcher) lingerOn(fl *flight, left time.Duration) {
	lacks, pause := fl.b.Lacks(), min(f.o.LingerIdle, left)
	fl.linger = time.AfterFunc(pause, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		switch {
		case fl.waiting > 0 || fl.landed:
		case pause == left || fl.b.Lacks() == lacks:
			fl.cancel()
		default:
			f.lingerOn(fl, left-pause)
		}
	})
}

// fly runs a download to its end.
func (f *Fetcher) fly(fl *flight) {
	f.metrics.inFlight.Inc()
	defer f.metrics.inFlight.Dec()
	began := f.o.Now()
	for {
		f.begin(fl)
		err := f.fill(fl)
		if err == nil {
			f.note(fl, began)
		} else if f.next(fl, err) {
			continue
		} else if isStatus(err) {
			err = &refusedError{err, fl.want}
		}
		if err != nil && !fl.noted {
			f.begin(fl) // the pieces that have come stay
		}
		if f.land(fl, err) {
			return
		}
	}
}

// claim decides whether the pieces that are here already are content of the upstream
// that the download is made from now on. They may be another upstream's: until all of
// the blob is verified, an answer of this one proves nothing about them (N10). f.mu is held.
func (f *Fetcher) claim(ctx context.Context, fl *flight) {
	fl.lacked = fl.b.Missing()
	fl.own, fl.noted = f.o.Index == nil || len(fl.lacked) == fl.b.Pieces(), false
	if fl.own {
		return
	}
	own, err := f.o.Index.IsOrigin(ctx, fl.want.Digest, fl.want.Namespace)
	if err != nil {
		f.o.Log.Warn("it is not known where the pieces of a blob came from", "digest", fl.want.Digest, "upstream", fl.want.Namespace, "err", err)
	}
	fl.own = own && err == nil
}

// begin notes as whose content the bytes come, before the first of them does.
// Without the note they are handed out to nobody who needs more than everybody's
// right. What this upstream adds to another's pieces is neither's.
func (f *Fetcher) begin(fl *flight) {
	if fl.own {
		f.noteOrigin(fl, fl.want.Namespace)
	} else {
		f.noteOrigin(fl, "")
	}
}

// noteOrigin takes the note of anybody else back: what others have begun, or said
// that they have, is not proved by what this one has brought. "" notes nobody.
func (f *Fetcher) noteOrigin(fl *flight, namespace string) {
	if f.o.Index == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(fl.ctx), noteTimeout)
	defer cancel()
	err := f.o.Index.SetOrigin(ctx, fl.want.Digest, namespace)
	if err != nil {
		f.o.Log.Warn("it could not be noted where a blob comes from", "digest", fl.want.Digest, "upstream", namespace, "err", err)
	}
	fl.noted = err == nil
}

// proved reports whether a verified blob is content of its download's upstream: all
// of it came as that, or the upstream itself sent everything that was missing.
func (fl *flight) proved() bool {
	for _, i := range fl.lacked {
		if fl.own {
			break
		}
		if fl.b.Sources(int64(i)*piece.Size, 1)[upstreamName] != 1 {
			return false
		}
	}
	return fl.own || len(fl.lacked) > 0
}

// Behalf is the upstream as whose content a blob is being brought, "" if it is not.
// own is false if some of the blob was here before and may be another upstream's.
func (f *Fetcher) Behalf(d oci.Digest) (namespace string, own bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl, ok := f.flights[d]; ok {
		return fl.want.Namespace, fl.own
	}
	return "", false
}

// next goes on on behalf of another who waits, if what went wrong was that the
// upstream refused the one before: a repository's refusal is no other's. And so
// for somebody who came just when the download was given up.
func (f *Fetcher) next(fl *flight, err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.ctx.Err() != nil && fl.waiting > 0 && !f.closed {
		fl.ctx, fl.cancel = context.WithCancel(f.ctx)
		return true
	}
	if !isStatus(err) || fl.ctx.Err() != nil {
		return false
	}
	for len(fl.others) > 0 {
		w := fl.others[0]
		fl.others = fl.others[1:]
		if sameRights(w, fl.want) {
			continue
		}
		// Whoever was refused still reads from this download, so it must not go on
		// to bring what is not everybody's.
		if w.Private {
			return false
		}
		fl.want = w
		f.claim(fl.ctx, fl)
		return true
	}
	return false
}

// land ends a download. Under the lock, so that who waits for it hears of its
// end before anybody begins the next. False: a piece was found corrupt since all
// was here, and somebody has joined to have it fetched again.
func (f *Fetcher) land(fl *flight, err error) bool {
	if err != nil {
		f.o.Log.Warn("a blob could not be fetched", "digest", fl.want.Digest, "upstream", fl.want.Namespace, "repository", fl.want.Repo,
			"err", err)
	}
	f.mu.Lock()
	if err == nil && !fl.b.Complete() && fl.waiting > 0 && fl.ctx.Err() == nil {
		f.mu.Unlock()
		return false
	}
	if err != nil {
		if _, ok := SizeOf(err); ok {
			fl.b.Supersede(err)
		}
		fl.b.Failed(err)
	}
	fl.release()
	fl.landed = true
	delete(f.flights, fl.want.Digest)
	if fl.linger != nil {
		fl.linger.Stop()
	}
	f.mu.Unlock()
	fl.cancel()
	fl.b.Close()
	return true
}

// fill tries one source after another. The error is the upstream's, whose answer
// means something to the asker.
func (f *Fetcher) fill(fl *flight) error {
	err := error(fault.New(fault.Busy, "no source is configured for %s", fl.want.Digest))
	for _, source := range f.o.Fillers {
		if err = f.from(fl, source); err == nil || fl.ctx.Err() != nil {
			return err
		}
		if _, ok := SizeOf(err); ok {
			return err // nobody has a blob of that size
		}
	}
	var status *ociclient.StatusError
	if errors.As(err, &status) && status.Outcome().Verdict() {
		return err // others may not give what it refuses
	}
	for _, source := range f.o.Rest {
		if f.from(fl, source) == nil {
			return nil
		}
	}
	return err
}

// from tries one source.
func (f *Fetcher) from(fl *flight, source Filler) error {
	name := source.Name()
	fl.source.Store(&name)
	w := fl.want
	w.head = fl.head
	err := source.Fill(fl.ctx, w, fl.b)
	if err == nil && !fl.b.Complete() {
		err = fmt.Errorf("the source %s says that it is done, and is not", name)
	}
	if err == nil {
		return nil
	}
	if fl.ctx.Err() != nil {
		return fault.Wrap(fault.Busy, err, "the download was given up")
	}
	f.metrics.failures.WithLabelValues(name, kind(err)).Inc()
	f.o.Log.Debug("a source failed", "digest", fl.want.Digest, "source", name, "err", err)
	return err
}

// noteTimeout bounds a write that nothing depends on.
const noteTimeout = 10 * time.Second

// note draws the conclusions from a blob that is here now. What it cost, the
// cache has noted itself.
func (f *Fetcher) note(fl *flight, began time.Time) {
	took := f.o.Now().Sub(began)
	f.metrics.seconds.Observe(took.Seconds())
	ctx, cancel := context.WithTimeout(context.WithoutCancel(fl.ctx), noteTimeout)
	defer cancel()
	if fl.proved() {
		f.noteOrigin(fl, fl.want.Namespace)
	}
	if err := f.learn(ctx, fl.b); err != nil {
		f.o.Log.Warn("the layers of a config could not be noted", "digest", fl.want.Digest, "err", err)
	}
	f.o.Fetched(fl.want.Digest, fl.b.Size())
	f.o.Log.Info("fetched", "digest", fl.want.Digest, "bytes", fl.b.Size(), "source", *fl.source.Load(), "ms", took.Milliseconds())
}

// Source says who is bringing a blob at the moment, "" if nobody is.
func (f *Fetcher) Source(w Want) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl, ok := f.flights[w.Digest]; ok {
		if name := fl.source.Load(); name != nil {
			return *name
		}
	}
	return ""
}

// kind is the label under which a failure is counted.
func kind(err error) string {
	var mismatch *piece.MismatchError
	switch {
	case errors.As(err, &mismatch):
		return "mismatch"
	case errors.Is(err, errStalled):
		return "stalled"
	case errors.Is(err, ErrWrongLength):
		return "length"
	case isStatus(err):
		return "status"
	case errors.Is(err, fault.Busy):
		return "unreachable"
	}
	return "other"
}
