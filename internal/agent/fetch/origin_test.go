package fetch_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/piece"
	"github.com/fairway-registry/fairway/internal/ociclient"
)

// origins are those of "up" and "other" that count as origins of a blob.
func (s *scene) origins(w fetch.Want) (all []string) {
	s.t.Helper()
	for _, namespace := range []string{"up", "other"} {
		is, err := s.index.IsOrigin(s.t.Context(), w.Digest, namespace)
		if err != nil {
			s.t.Fatal(err)
		}
		if is {
			all = append(all, namespace)
		}
	}
	return all
}

func (s *scene) wantOrigins(w fetch.Want, when string, want ...string) {
	s.t.Helper()
	if got := s.origins(w); len(got) != len(want) || len(got) > 0 && got[0] != want[0] {
		s.t.Errorf("%s, it is content of %q, want %q", when, got, want)
	}
}

// halting brings two pieces for "up" and fails, once. Afterwards it brings the rest, but
// only when the test lets it: came is sent to when it is asked.
func halting(name string, all []byte) (s *source, came, goOn chan struct{}) {
	came, goOn = make(chan struct{}), make(chan struct{})
	first := true
	return &source{name: name, fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		if first {
			first = false
			return errors.Join(write(ctx, b, all, 0, 1, name), errors.New("the upstream broke off"))
		}
		came <- struct{}{}
		<-goOn
		return write(ctx, b, all, 0, b.Pieces()-1, name)
	}}, came, goOn
}

// TestN10_ADownloadOverAnothersPiecesIsNobodys until the upstream itself has sent all that
// was missing, and the whole is verified.
func TestN10_ADownloadOverAnothersPiecesIsNobodys(t *testing.T) {
	for name, inTheEnd := range map[string][]string{"upstream": {"other"}, "swarm": nil} {
		all := content(4 * piece.Size)
		filler, came, goOn := halting(name, all)
		s := open(t, fetch.Options{Fillers: []fetch.Filler{filler}})
		mine, other := want(all), want(all)
		mine.Private, other.Private, other.Namespace = true, true, "other"
		if _, err := s.read(t.Context(), mine); err == nil {
			t.Fatal("the first download did not break off")
		}
		s.wantOrigins(mine, "after the first download", "up")
		done := make(chan error, 1)
		go func() {
			_, err := s.read(t.Context(), other)
			done <- err
		}()
		<-came
		if namespace, own := s.Behalf(mine.Digest); namespace != "other" || own {
			t.Errorf("%s: it is brought for %q, as its own: %v", name, namespace, own)
		}
		s.wantOrigins(mine, "while another upstream adds to it")
		close(goOn)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		s.Close()
		s.wantOrigins(mine, "complete, from "+name, inTheEnd...)
	}
}

// TestN10_AResumedDownloadIsOfItsUpstream, and of nobody else who says that he has it.
func TestN10_AResumedDownloadIsOfItsUpstream(t *testing.T) {
	all := content(4 * piece.Size)
	filler, came, goOn := halting("swarm", all)
	s := open(t, fetch.Options{Fillers: []fetch.Filler{filler}})
	w := want(all)
	w.Private = true
	if _, err := s.read(t.Context(), w); err == nil {
		t.Fatal("the first download did not break off")
	}
	if err := s.index.PutOrigin(t.Context(), w.Digest, "other"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.read(t.Context(), w)
		done <- err
	}()
	<-came
	if namespace, own := s.Behalf(w.Digest); namespace != "up" || !own {
		t.Errorf("it is brought for %q, as its own: %v", namespace, own)
	}
	s.wantOrigins(w, "while it is resumed", "up")
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.wantOrigins(w, "complete", "up")
}

// TestN10_AnOriginThatCouldNotBeNotedIsNotedLater: without it the pieces that have come are
// nobody's, and are never resumed.
func TestN10_AnOriginThatCouldNotBeNotedIsNotedLater(t *testing.T) {
	all := content(4 * piece.Size)
	var db *sql.DB
	filler := &source{name: "upstream", fill: func(ctx context.Context, _ fetch.Want, b *piece.Blob) error {
		_, err := db.ExecContext(ctx, "DROP TRIGGER refuse")
		return errors.Join(err, write(ctx, b, all, 0, 1, "upstream"), errors.New("the upstream broke off"))
	}}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{filler}})
	db, err := sql.Open("sqlite", filepath.Join(s.dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // only this test's
	if _, err := db.ExecContext(t.Context(), "CREATE TRIGGER refuse BEFORE INSERT ON origins BEGIN SELECT RAISE(ABORT, 'refused'); END"); err != nil {
		t.Fatal(err)
	}
	w := want(all)
	if _, err := s.read(t.Context(), w); err == nil {
		t.Fatal("the download did not break off")
	}
	s.wantOrigins(w, "after the download", "up")
}

// TestN10_WhatGoesOnForAnotherUpstreamIsNotItsOwn: the first was refused in the middle.
func TestN10_WhatGoesOnForAnotherUpstreamIsNotItsOwn(t *testing.T) {
	all := content(4 * piece.Size)
	joined, came, goOn := make(chan struct{}), make(chan struct{}), make(chan struct{})
	filler := &source{name: "swarm", fill: func(ctx context.Context, w fetch.Want, b *piece.Blob) error {
		if w.Namespace == "up" {
			<-joined
			return errors.Join(write(ctx, b, all, 0, 1, "swarm"), &ociclient.StatusError{Status: 401})
		}
		came <- struct{}{}
		<-goOn
		return write(ctx, b, all, 0, b.Pieces()-1, "swarm")
	}}
	s := open(t, fetch.Options{Fillers: []fetch.Filler{filler}})
	mine, other := want(all), want(all)
	other.Namespace = "other"
	for _, w := range []fetch.Want{mine, other} {
		b, err := s.Get(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
	}
	close(joined)
	<-came
	if namespace, own := s.Behalf(mine.Digest); namespace != "other" || own {
		t.Errorf("it is brought for %q, as its own: %v", namespace, own)
	}
	s.wantOrigins(mine, "while it goes on")
	close(goOn)
	s.Close()
	s.wantOrigins(mine, "complete")
}
