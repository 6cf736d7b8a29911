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
)

// DetectorOptions of a Detector.
type DetectorOptions struct {
	Root string // below which the usual places are looked for; "/" if empty
	// File remembers, one in a line, the endpoints of runtimes that have answered, so
	// that they are still known after a restart; "": nothing is remembered.
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
	endpoints []string                // of all sources, in the order in which they were found
	answered  map[string]bool         // by endpoint: it is in the file, or to be
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
	d := &Detector{o: o, eyes: newEyes(o.Root), known: map[string]bool{}, answered: map[string]bool{}, opened: map[inuse.Source]string{}}
	remembered, err := d.remembered()
	if err != nil {
		return nil, err
	}
	for _, e := range remembered {
		kind, path, err := parse(e)
		if err == nil && kind == kindUnix {
			err = errors.New("want the kind of the runtime before ://")
		}
		if err == nil {
			err = d.open(socket{kind: kind, path: path, real: d.eyes.resolved(path)})
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s, which lists the runtimes that were seen here: %q: %w; correct or remove the line", o.File, e, err), d.Close())
		}
		d.answered[e] = true
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
	return strings.Fields(string(content)), nil
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
	d.endpoints = append(d.endpoints, e)
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
	e, ok := d.opened[s]
	if !ok || d.answered[e] {
		return
	}
	d.answered[e] = true
	d.save()
}

// save writes the file. Where that fails it is tried again with the next look;
// until then the runtime is known to this process only.
func (d *Detector) save() {
	if d.o.File == "" {
		return
	}
	var text strings.Builder
	for _, e := range d.endpoints {
		if d.answered[e] {
			text.WriteString(e + "\n")
		}
	}
	err := replace(d.o.File, text.String())
	if err != nil && !d.unsaved {
		d.o.Log.Warn("which runtimes were seen here could not be written down for the next start", "err", err)
	}
	d.unsaved = err != nil
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
