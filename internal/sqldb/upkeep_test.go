package sqldb_test

import (
	"context"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/sqldb"
)

// TestUpkeep_IsTheWorkOfMaintenance: neither that of clients, nor a wait.
func TestUpkeep_IsTheWorkOfMaintenance(t *testing.T) {
	slow := false
	db := open(t, sqldb.Options{Trace: func(query string, _ []any) {
		for began := time.Now(); slow && query == "COMMIT" && time.Since(began) < 5*time.Millisecond; {
		}
	}})
	var took time.Duration
	n := 0
	work := func(tx *sqldb.Tx) error {
		began := time.Now()
		defer func() { took = time.Since(began) }()
		n++
		return insert(n, "x")(tx)
	}
	for name, tc := range map[string]struct {
		write  func(context.Context, func(*sqldb.Tx) error) error
		counts bool
	}{
		"Write": {db.Write, false}, "Relieve": {db.Relieve, false}, "Note": {db.Note, false},
		"Maintain": {db.Maintain, true}, "MaintainNote": {db.MaintainNote, true},
	} {
		before := db.Upkeep()
		if err := tc.write(t.Context(), work); err != nil {
			t.Fatal(err)
		}
		got := db.Upkeep() - before
		if tc.counts && got < took || !tc.counts && got != 0 {
			t.Errorf("%s has worked for %v, of which %v count as upkeep", name, took, got)
		}
	}
	// A commit of maintenance is work too: clients' writes wait for it.
	before := db.Upkeep()
	slow = true
	if err := db.MaintainNote(t.Context(), work); err != nil {
		t.Fatal(err)
	}
	slow = false
	if got := db.Upkeep() - before; got < 5*time.Millisecond {
		t.Errorf("upkeep of %v, in which the commit is missing", got)
	}
	// A turn that is waited for is no work.
	before = db.Upkeep()
	began, begun := time.Now(), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- db.Write(context.Background(), func(*sqldb.Tx) error {
			close(begun)
			for time.Since(began) < 20*time.Millisecond {
			}
			return nil
		})
	}()
	<-begun
	if err := db.Maintain(t.Context(), work); err != nil {
		t.Fatal(err)
	}
	waited := time.Since(began)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := db.Upkeep() - before; got >= waited {
		t.Errorf("upkeep of %v in %v, most of which was a wait", got, waited)
	}
}
