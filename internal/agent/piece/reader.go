package piece

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
)

// NewReader reads n bytes from off (n < 0: to the end), in order, waiting for
// what is missing. It pins the blob until it is closed. The last piece of what
// was asked for is handed out only once the whole blob is verified, however small
// a part that is; if what was handed out before turns out wrong, the reader fails
// and never ends with io.EOF. An error that is ErrCorrupt means that a piece has
// been dropped: once it is fetched again, a new reader may go on where this one
// stopped. After any other error, such as ErrDoubt, none may.
//
// The reader is an io.WriterTo: what was checked since this process began, and
// whose file has not changed since, goes to a writer that is an io.ReaderFrom as
// a part of a file, which to a socket is sendfile.
func (b *Blob) NewReader(ctx context.Context, off, n int64) io.ReadCloser {
	off = min(max(off, 0), b.e.size)
	end := b.e.size
	if n >= 0 {
		end = min(end, off+min(n, end))
	}
	r := &reader{s: b.s, e: b.e, since: b.since, pos: off, end: end, held: -1}
	r.ctx, r.cancel = context.WithCancel(ctx)
	b.s.mu.Lock()
	if r.shut = b.closed.Load(); !r.shut {
		b.e.refs++ // b has one, so the entry is not idle
	}
	b.s.mu.Unlock()
	b.e.mu.Lock()
	r.gen = b.e.gen
	b.e.mu.Unlock()
	return r
}

// reader is used by one goroutine, but for Close.
type reader struct {
	s        *Store
	e        *entry
	ctx      context.Context // ends with Close too, which need not wait for a Read that waits
	cancel   context.CancelFunc
	pos, end int64
	since    int  // as in Blob
	gen      int  // of the entry when the first byte was handed out
	begun    bool // something was handed out
	buf      *[Size]byte
	held     int // the piece in buf, or -1

	mu   sync.Mutex // held while reading, so that Close does not pull the file away
	shut bool
}

// Close lets go of the blob.
func (r *reader) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shut {
		return nil
	}
	r.shut = true
	if r.buf != nil {
		r.s.buffers.Put(r.buf)
		r.buf = nil
	}
	r.s.release(r.e)
	return nil
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	part, err := r.next()
	if err != nil {
		return 0, err
	}
	n := copy(p, part)
	r.pos += int64(n)
	return n, nil
}

// next returns what follows at pos, of one piece at the most. io.EOF at the end.
func (r *reader) next() ([]byte, error) {
	for {
		if r.shut {
			return nil, ErrClosed
		}
		if r.pos >= r.end {
			return nil, r.last()
		}
		i := int(r.pos / Size)
		need := i
		if r.end <= int64(i+1)*Size {
			need = r.e.count() - 1 // the reader ends with it, so the whole must be verified
		}
		if err := r.e.wait(r.ctx, need, r.since); err != nil {
			return nil, err
		}
		err := r.fetch(i)
		if changed := r.still(); changed != nil {
			err = changed // which is why, if the piece could not be read either
		}
		if errors.Is(err, errAgain) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r.begun = true
		from := int64(i) * Size
		return r.buf[r.pos-from : min(r.end-from, int64(pieceLen(r.e.size, i)))], nil
	}
}

// fetch has piece i in buf.
func (r *reader) fetch(i int) error {
	if r.held == i {
		return nil
	}
	if r.buf == nil {
		r.buf = r.s.buffers.Get().(*[Size]byte)
	}
	r.held = -1
	if err := r.s.readPiece(r.e, i, r.buf[:pieceLen(r.e.size, i)]); err != nil {
		return err
	}
	r.held = i
	return nil
}

// last says how a reader ends that has handed out all it was asked for.
func (r *reader) last() error {
	if err := r.still(); err != nil && !errors.Is(err, errAgain) {
		return err
	}
	return io.EOF
}

// still fails if what was handed out has turned out wrong.
func (r *reader) still() error {
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	if r.gen != r.e.gen {
		if r.begun {
			return r.e.wrong
		}
		r.gen, r.held = r.e.gen, -1
		return errAgain
	}
	return nil
}

// errAgain is never told: nothing was handed out yet, so a reader begins anew.
var errAgain = errors.New("begin again")

// chunk is how much goes to a socket between two looks at the file.
const chunk = 64 << 20

// WriteTo implements io.WriterTo.
func (r *reader) WriteTo(w io.Writer) (total int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rf, _ := w.(io.ReaderFrom)
	var file *os.File
	defer func() {
		if file != nil {
			_ = file.Close() // it was read only
		}
	}()
	for {
		if err := r.ctx.Err(); err != nil {
			return total, err
		}
		if n := r.run(); rf != nil && n > 0 {
			if file == nil {
				file = r.s.reopen(r.e)
			}
			if file == nil {
				rf = nil
				continue
			}
			sent, err := r.send(rf, file, n)
			total += sent
			if err != nil {
				return total, err
			}
			if sent == n {
				continue
			}
			// The file became shorter: reading the piece finds that out.
		}
		part, err := r.next()
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		n, err := w.Write(part)
		total += int64(n)
		r.pos += int64(n)
		if err != nil {
			return total, err
		}
	}
}

func (r *reader) send(rf io.ReaderFrom, file *os.File, n int64) (sent int64, err error) {
	if _, err := file.Seek(r.pos, io.SeekStart); err != nil {
		return 0, err
	}
	sent, err = rf.ReadFrom(&io.LimitedReader{R: file, N: n})
	r.pos += sent
	return sent, err
}

// run returns how many bytes from pos on are known to be right in the file as it
// is now.
func (r *reader) run() int64 {
	if r.shut || r.pos >= r.end {
		return 0
	}
	e := r.e
	e.mu.Lock()
	complete := e.complete
	e.mu.Unlock()
	if !complete {
		return 0
	}
	st, err := stampOf(e.files.data)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil || !e.complete || e.stamp != st || r.gen != e.gen || e.barred(r.since) != nil {
		return 0
	}
	to := r.pos
	for i := int(r.pos / Size); to < r.end && to-r.pos < chunk && e.checked.has(i); i++ {
		to = min(r.end, int64(i+1)*Size)
	}
	if to > r.pos {
		r.begun = true
	}
	return to - r.pos
}

// reopen opens the file of a blob again, with an offset of its own; nil if
// another file has its name by now.
func (s *Store) reopen(e *entry) *os.File {
	f, err := os.Open(s.path(e.d))
	if err != nil {
		return nil
	}
	mine, err := e.files.data.Stat()
	if err == nil {
		if fi, statErr := f.Stat(); statErr == nil && os.SameFile(mine, fi) {
			return f
		}
	}
	_ = f.Close() // it was read only
	return nil
}
