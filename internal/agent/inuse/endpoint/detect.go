package endpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/inuse"
	"github.com/fairway-registry/fairway/internal/fault"
)

// DetectorOptions of a Detector.
type DetectorOptions struct {
	Root string // below which the usual places are looked for; "/" if empty
	// File remembers, one in a line, the endpoints of runtimes that have answered, and
	// when, so that they are still known after a restart; "": nothing is remembered.
	File  string
	Every time.Duration // between two looks that no event asks for; 10 s if 0
	Log   *slog.Logger  // may be nil
}

// Detector finds the runtimes of a machine. It implements inuse.Finder.
type Detector struct {
	o    DetectorOptions
	eyes *eyes

	mu        sync.Mutex
	known     map[string]bool         // by path, as it is and without links
	real      map[string]string       // by endpoint: its path without links
	endpoints []string                // of all sources, in the order in which they were found
	answered  map[string]time.Time    // by endpoint: it is in the file, or to be; zero: an earlier version has not written when
	unsaved   bool                    // the file lacks one
	opened    map[inuse.Source]string // endpoints
	fresh     []inuse.Source          // not handed out by Find yet
	doubting  *doubting               // handed out once there was a doubt
}

// NewDetector returns a detector that knows the runtimes of the file. An error
// is about the file.
func NewDetector(o DetectorOptions) (*Detector, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Every <= 0 {
		o.Every = everyDefault
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	d := &Detector{o: o, eyes: newEyes(o.Root), known: map[string]bool{}, real: map[string]string{}, answered: map[string]time.Time{}, opened: map[inuse.Source]string{}}
	remembered, err := d.remembered()
	if err != nil {
		return nil, err
	}
	for _, line := range remembered {
		e, at, _ := strings.Cut(line, " ")
		kind, path, err := parse(e)
		if err == nil && kind == kindUnix {
			err = errors.New("want the kind of the runtime before ://")
		}
		if err == nil {
			err = d.open(socket{kind: kind, path: path, real: d.eyes.resolved(path)})
		}
		var answered time.Time
		if err == nil && at != "" { // an earlier version has not written when
			answered, err = time.Parse(time.RFC3339, at)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s, which lists the runtimes that were seen here: %q: %w; correct or remove the line", o.File, line, err), d.Close())
		}
		d.answered[e] = answered
	}
	return d, nil
}

func (d *Detector) remembered() ([]string, error) {
	if d.o.File == "" {
		return nil, nil
	}
	content, err := os.ReadFile(d.o.File)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read which runtimes were seen here: %w", err)
	}
	var lines []string
	for line := range strings.Lines(string(content)) {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// resolved is a path without links, also of a file that is not there now.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	dir := filepath.Dir(path)
	if dir == path {
		return path
	}
	return filepath.Join(resolved(dir), filepath.Base(path))
}

// knows reports whether there is a source of a socket. A path may have become a
// link, or lead elsewhere, while its runtime was away.
func (d *Detector) knows(s socket) bool { return d.known[s.path] || d.known[s.real] }

// open makes a source of a socket that is not known yet. The caller holds mu, or
// is the constructor.
func (d *Detector) open(s socket) error {
	if d.knows(s) {
		return nil
	}
	source, err := open(s.kind, s.path, name(s.kind, s.path), d.o.Log)
	if err != nil {
		return err
	}
	d.known[s.path], d.known[s.real] = true, true
	e := s.kind + "://" + s.path
	d.endpoints, d.real[e] = append(d.endpoints, e), s.real
	d.opened[source] = e
	d.fresh = append(d.fresh, source)
	return nil
}

// Find is of inuse.Finder.
func (d *Detector) Find() []inuse.Source {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unsaved {
		d.save()
	}
	seen := d.look()
	found := d.fresh
	d.fresh = nil
	if len(seen.doubts) > 0 && d.doubting == nil {
		d.doubting = &doubting{detector: d}
		found = append(found, d.doubting)
	}
	return found
}

// look opens the sockets that are new, and returns what there is. The caller
// holds mu.
func (d *Detector) look() sight {
	seen := d.eyes.look()
	for _, s := range seen.sockets {
		is := d.knows(s)
		if err := d.open(s); err != nil {
			seen.doubts = append(seen.doubts, fmt.Errorf("%s: %w", s.path, err))
		} else if !is {
			d.o.Log.Info("a container runtime was found", "endpoint", d.endpoints[len(d.endpoints)-1])
		}
	}
	return seen
}

// Answered is of inuse.Finder.
func (d *Detector) Answered(s inuse.Source) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.opened[s]; ok {
		d.answered[e] = time.Now()
		d.save()
	}
}

// save writes the file. Where that fails it is tried again with the next look;
// until then the runtime is known to this process only.
func (d *Detector) save() {
	err := d.write("")
	if err != nil && !d.unsaved {
		d.o.Log.Warn("which runtimes were seen here could not be written down for the next start", "err", err)
	}
	d.unsaved = err != nil
}

// write writes the file with all endpoints but one.
func (d *Detector) write(without string) error {
	if d.o.File == "" {
		return nil
	}
	var text strings.Builder
	for _, e := range d.endpoints {
		at, ok := d.answered[e]
		if !ok || e == without {
			continue
		}
		text.WriteString(e)
		if !at.IsZero() {
			text.WriteString(" " + at.UTC().Format(time.RFC3339))
		}
		text.WriteByte('\n')
	}
	return replace(d.o.File, text.String())
}

// Forget is of inuse.Finder. The file is written first: after a crash the runtime is
// forgotten, or it is known as before.
func (d *Detector) Forget(s inuse.Source) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.opened[s]
	if !ok {
		return fault.New(fault.Conflict, "%s stands for runtimes that may be here besides those that were found, and ends when none may; "+
			"\"fairway node status\" shows what to do", s.Name())
	}
	_, path, err := parse(e)
	if err != nil {
		return err
	}
	there, err := d.eyes.listens(path)
	if err != nil {
		return fault.New(fault.Conflict, "whether %s is gone cannot be found out: %v", s.Name(), err)
	}
	if there {
		return fault.New(fault.Conflict, "the socket of %s is still at %s, where it would be found again; remove the runtime, and the socket if that leaves it, and try again", s.Name(), path)
	}
	if err := d.write(e); err != nil {
		return fmt.Errorf("forget %s: %w", e, err)
	}
	d.unsaved = false
	delete(d.known, path)
	delete(d.known, d.real[e])
	delete(d.real, e)
	delete(d.answered, e)
	delete(d.opened, s)
	d.endpoints = slices.DeleteFunc(d.endpoints, func(other string) bool { return other == e })
	d.o.Log.Warn("a container runtime was forgotten: nothing is kept for it any more", "endpoint", e)
	return nil
}

// Endpoint returns where the runtime of a source has its socket, and when the runtime
// answered for the first time since the last start of an agent at which it did; zero
// if that is not known.
func (d *Detector) Endpoint(s inuse.Source) (endpoint string, answered time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.opened[s]
	return e, d.answered[e]
}

// replace writes a file so that a crash leaves the old one or the new.
func replace(file, text string) error {
	dir := filepath.Dir(file)
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	at, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(at.Sync(), at.Close())
}

// Endpoints lists what was found so far, in the order in which it was.
func (d *Detector) Endpoints() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.endpoints)
}

// Sources lists the sources of these endpoints, in the same order.
func (d *Detector) Sources() []inuse.Source {
	d.mu.Lock()
	defer d.mu.Unlock()
	byEndpoint := map[string]inuse.Source{}
	for s, e := range d.opened {
		byEndpoint[e] = s
	}
	var all []inuse.Source
	for _, e := range d.endpoints {
		all = append(all, byEndpoint[e])
	}
	return all
}

// Close closes the sources.
func (d *Detector) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for s := range d.opened {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// doubting is a source for the runtimes that there may be besides those that
// were found. It cannot be asked while there is a reason to think so, and has
// nothing otherwise.
type doubting struct{ detector *Detector }

// Name is of inuse.Source.
func (d *doubting) Name() string { return "detection" }

// Snapshot is of inuse.Source.
func (d *doubting) Snapshot(context.Context) (inuse.Snapshot, error) {
	return inuse.Snapshot{}, errors.Join(d.detector.eyes.look().doubts...)
}

// Watch is of inuse.Source.
func (d *doubting) Watch(context.Context, func()) error { return inuse.ErrNoEvents }

// Close is of inuse.Source.
func (d *doubting) Close() error { return nil }
