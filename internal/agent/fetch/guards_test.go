package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// TestN7_APartIsWhatWasAskedFor: nobody verifies a part, so whatever an upstream makes of
// the range, a client gets these bytes of the blob or an error.
func TestN7_APartIsWhatWasAskedFor(t *testing.T) {
	all := content(100_000)
	const first, n = 1000, 50_000
	for name, tt := range map[string]struct {
		from, to, total int64 // what it sends, and says
		says            int64 // where it says that it begins
		none            bool  // no Content-Length
		ok              bool
	}{
		"the range":                            {from: first, to: first + n, total: 100_000, says: first, ok: true},
		"more before":                          {from: 0, to: first + n, total: 100_000, says: 0, ok: true},
		"more behind":                          {from: first, to: 100_000, total: 100_000, says: first, ok: true},
		"more on both sides":                   {from: 10, to: 90_000, total: 100_000, says: 10, ok: true},
		"more on both sides, without a length": {from: 10, to: 90_000, total: 100_000, says: 10, none: true, ok: true},
		"less before":                          {from: first + 1, to: first + n + 1, total: 100_000, says: first + 1},
		"less behind":                          {from: first, to: first + n - 1, total: 100_000, says: first},
		"less behind, without a length":        {from: first, to: first + n - 1, total: 100_000, says: first, none: true},
		"of another blob":                      {from: first, to: first + n, total: 99_999, says: first},
	} {
		t.Run(name, func(t *testing.T) {
			up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/octet-stream")
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", tt.says, tt.says+tt.to-tt.from-1, tt.total))
				if !tt.none {
					w.Header().Set("Content-Length", fmt.Sprint(tt.to-tt.from))
				}
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(all[tt.from:tt.to])
			}))
			defer up.Close()
			s := open(t, fetch.Options{Origin: upstream(t, up.URL)})
			var got bytes.Buffer
			err := s.Part(t.Context(), &got, want(all), first, n)
			if !bytes.Equal(got.Bytes(), all[first:first+int64(got.Len())]) {
				t.Errorf("%d other bytes", got.Len())
			}
			if (err == nil) != tt.ok || tt.ok && got.Len() != n {
				t.Errorf("%d bytes, %v", got.Len(), err)
			}
		})
	}
}

// TestR16_ClaimedSizesAreBounded: a size that cannot be the blob's is not used.
func TestR16_ClaimedSizesAreBounded(t *testing.T) {
	some, empty := digest.FromString("some"), digest.FromBytes(nil)
	for _, tt := range []struct {
		d         oci.Digest
		size, use int64
	}{{some, 4, 4}, {some, 0, -1}, {empty, 0, 0}, {some, -1, -1}, {some, oci.SizeMax, oci.SizeMax}, {some, oci.SizeMax + 1, -1}} {
		if got := fetch.Claimed(tt.d, tt.size); got != tt.use {
			t.Errorf("%d bytes of %s are used as %d, want %d", tt.size, tt.d, got, tt.use)
		}
	}
}

// TestPart_EndsWhenItsReaderHasGone: nobody is asked again for somebody who is not there.
func TestPart_EndsWhenItsReaderHasGone(t *testing.T) {
	all := content(100_000)
	var asked atomic.Int64
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Range", "bytes 0-49999/100000")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(all[:50_000])
	}))
	defer up.Close()
	s := open(t, fetch.Options{Origin: upstream(t, up.URL)})
	gone := errors.New("gone")
	if err := s.Part(t.Context(), writer(func([]byte) (int, error) { return 0, gone }), want(all), 0, 50_000); err == nil || !strings.Contains(err.Error(), "gone") || asked.Load() != 1 {
		t.Errorf("%v, after %d questions", err, asked.Load())
	}
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// TestPart_TriesAreBounded: of an upstream that breaks off before each byte, refuses, or
// gives the whole for a part.
func TestPart_TriesAreBounded(t *testing.T) {
	all := content(100_000)
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		most   int64
	}{
		"breaks off": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 3},
		"refuses":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, 1},
		"fails":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, 3},
		"gives the whole": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(all)
		}, 1},
		"says another size": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("Content-Range", "bytes 0-49999/99999")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(all[:50_000])
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int64
			up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				tt.answer(w, r)
			}))
			defer up.Close()
			s := open(t, fetch.Options{Origin: upstream(t, up.URL)})
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := s.Part(ctx, io.Discard, want(all), 0, 50_000); err == nil || ctx.Err() != nil || asked.Load() > 3*tt.most {
				t.Errorf("%v, after %d questions", err, asked.Load())
			}
			if tt.most == 1 && asked.Load() != 1 {
				t.Errorf("it was asked %d times", asked.Load())
			}
		})
	}
}

// TestJoin_WhoIsAskedOnBehalfOfWhom: after a refusal the others who wait, each right once
// and none on whose behalf private content would come to those who were refused; after an
// outage nobody, since it would be the same for each.
func TestJoin_WhoIsAskedOnBehalfOfWhom(t *testing.T) {
	all := content(300)
	refused, down := error(&ociclient.StatusError{Status: http.StatusForbidden}), error(fault.New(fault.Busy, "down"))
	as := func(repo oci.Name, private bool) fetch.Want {
		w := want(all)
		w.Repo, w.Private = repo, private
		return w
	}
	for name, tt := range map[string]struct {
		others []fetch.Want
		err    error
		asked  int64
	}{
		"others":             {[]fetch.Want{as("b", false), as("c", false)}, refused, 3},
		"the same":           {[]fetch.Want{as("a", false), as("a", false)}, refused, 1},
		"the same of others": {[]fetch.Want{as("b", false), as("b", false)}, refused, 2},
		"one who is private": {[]fetch.Want{as("b", true), as("c", false)}, refused, 1},
		"an outage":          {[]fetch.Want{as("b", false), as("c", false)}, down, 1},
	} {
		t.Run(name, func(t *testing.T) {
			joined := make(chan struct{})
			up := &source{name: "upstream"}
			up.fill = func(context.Context, fetch.Want, *piece.Blob) error {
				<-joined
				return tt.err
			}
			s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
			var waiting []*piece.Blob
			for _, w := range append([]fetch.Want{as("a", false)}, tt.others...) {
				b, err := s.Get(t.Context(), w)
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				waiting = append(waiting, b)
			}
			close(joined)
			for _, b := range waiting {
				if err := b.Wait(t.Context(), 0); err == nil {
					t.Error("somebody got it")
				}
			}
			if n := up.runs.Load(); n != tt.asked {
				t.Errorf("the source was asked %d times, want %d", n, tt.asked)
			}
		})
	}
}

// TestR16_ASizeThatTheUpstreamContradictsEndsTheDownload: no other source is asked for a
// blob of that size, and a client with the right size gets it at once.
func TestR16_ASizeThatTheUpstreamContradictsEndsTheDownload(t *testing.T) {
	all := content(300_000)
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(all))
	}))
	defer up.Close()
	other := honest("other", all)
	s := open(t, fetch.Options{Fillers: []fetch.Filler{upstream(t, up.URL), other}})
	w := want(all)
	w.Size++
	b, err := s.Get(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	err = b.Wait(t.Context(), 0)
	if size, ok := fetch.SizeOf(err); !ok || size != int64(len(all)) || other.runs.Load() > 0 {
		t.Errorf("%v; another source was asked %d times", err, other.runs.Load())
	}
	if !b.Superseded() {
		t.Error("it goes on to be one of another size")
	}
	left := make(chan struct{})
	go func() { b.Close(); close(left) }()
	if got, err := s.read(t.Context(), want(all)); err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	<-left
}

// TestClose_WaitsForDownloads: their stores are closed next.
func TestClose_WaitsForDownloads(t *testing.T) {
	ending, goOn := make(chan struct{}), make(chan struct{})
	up := &source{name: "upstream", fill: func(ctx context.Context, _ fetch.Want, _ *piece.Blob) error {
		<-ctx.Done()
		close(ending)
		<-goOn
		return ctx.Err()
	}}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
	b, err := s.Get(t.Context(), want(content(300)))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	<-ending
	select {
	case <-closed:
		t.Error("it is closed while a download ends")
	case <-time.After(50 * time.Millisecond): // it waits, or is slow, which is as well
	}
	close(goOn)
	<-closed
}

// TestN11_WhatIsHereStaysEverybodys: who asks for it as private content takes it from nobody.
func TestN11_WhatIsHereStaysEverybodys(t *testing.T) {
	all := content(300)
	s := open(t, fetch.Options{Fillers: []fetch.Filler{honest("upstream", all)}})
	if _, err := s.read(t.Context(), want(all)); err != nil {
		t.Fatal(err)
	}
	w := want(all)
	w.Private = true
	b, err := s.Get(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if i, err := s.store.Info(t.Context(), w.Digest); err != nil || i.Private || b.Private() {
		t.Errorf("%+v, %v", i, err)
	}
}

// places counts who is asked for room, and has none.
type places struct{ could atomic.Int64 }

func (p *places) Could(context.Context, int64) bool { p.could.Add(1); return false }
func (p *places) Make(context.Context, int64) bool  { p.could.Add(1); return false }

// TestN5_NothingWarmMakesWayForWhatNobodyWaitsFor: until somebody does.
func TestN5_NothingWarmMakesWayForWhatNobodyWaitsFor(t *testing.T) {
	all := content(3 * piece.Size)
	goOn := make(chan struct{})
	up := &source{name: "upstream", fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		<-goOn
		return write(ctx, b, all, 0, 2, "upstream")
	}}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
	anyone, spare := &places{}, &places{}
	s.store.SetRoom(anyone)
	s.store.SetSpareRoom(spare)
	background := want(all)
	background.Background = true
	s.store.SetLimits(piece.Limits{Quota: 100_000_000, High: 0.0001, Low: 0.00005}) // there is room, and none below the watermark
	if b, err := s.Get(t.Context(), background); !errors.Is(err, fault.Full) {
		b.Close()
		t.Errorf("nobody waits for it: %v", err)
	}
	s.store.SetLimits(piece.Limits{Quota: 100_000_000, High: 0.9, Low: 0.8})
	b, err := s.Get(t.Context(), background)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	waits, err := s.Get(t.Context(), want(all))
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	s.store.SetLimits(piece.Limits{Quota: 100_000_000, High: 0.0001, Low: 0.00005})
	spare.could.Store(0)
	close(goOn)
	if err := waits.Wait(t.Context(), 2); err != nil || spare.could.Load() > 0 {
		t.Errorf("somebody waits for it: %v, spare room was asked for %d times", err, spare.could.Load())
	}
}

// noting signals the first bytes that are written to it.
type noting struct {
	bytes.Buffer
	some chan struct{}
}

func (n *noting) Write(p []byte) (int, error) {
	if n.Len() == 0 {
		close(n.some)
	}
	return n.Buffer.Write(p)
}

// TestN7_APieceThatBeganOtherwiseFailsItsReader: what was handed out before the piece was
// whole came from one who was not followed.
func TestN7_APieceThatBeganOtherwiseFailsItsReader(t *testing.T) {
	for _, lies := range []bool{false, true} {
		all := content(2 * piece.Size)
		shown := bytes.Clone(all[:1000])
		if lies {
			shown[500]++
		}
		dst := &noting{some: make(chan struct{})}
		up := &source{name: "upstream", fill: func(ctx context.Context, w fetch.Want, b *piece.Blob) error {
			w.Show(0, shown)
			<-dst.some
			w.Hide()
			return write(ctx, b, all, 0, 1, "upstream")
		}}
		s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
		b, err := s.Get(t.Context(), want(all))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		n, err := s.Copy(t.Context(), dst, b, 0, -1)
		if (err != nil) != lies || int(n) != dst.Len() || lies && dst.Len() > len(shown) {
			t.Errorf("lies %v: %d bytes, %v", lies, n, err)
		}
		if !lies && !bytes.Equal(dst.Bytes(), all) {
			t.Error("other bytes")
		}
	}
}

// TestN7_OfTheLastPieceNothingIsShown: nobody knows whether it is right before the whole is
// verified.
func TestN7_OfTheLastPieceNothingIsShown(t *testing.T) {
	all := content(piece.Size)
	dst := &noting{some: make(chan struct{})}
	up := &source{name: "upstream", fill: func(ctx context.Context, w fetch.Want, b *piece.Blob) error {
		w.Show(0, all[:1000])
		defer w.Hide()
		select {
		case <-dst.some:
			t.Error("it was handed out")
		case <-time.After(50 * time.Millisecond): // it waits, or is slow, which is as well
		}
		return write(ctx, b, all, 0, 0, "upstream")
	}}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{up}})
	b, err := s.Get(t.Context(), want(all))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := s.Copy(t.Context(), dst, b, 0, -1); err != nil || !bytes.Equal(dst.Bytes(), all) {
		t.Errorf("%d bytes, %v", dst.Len(), err)
	}
}
