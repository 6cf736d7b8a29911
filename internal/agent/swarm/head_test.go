package swarm_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/fairway-registry/fairway/internal/agent/fetch"
	"github.com/fairway-registry/fairway/internal/agent/swarm"
	"github.com/fairway-registry/fairway/internal/agent/swarm/swarmtest"
)

// halting is an origin that sends the first bytes of a range and the others when it is told to.
type halting struct {
	*swarmtest.Origin
	first int64
	more  chan struct{}
}

func (h halting) Range(ctx context.Context, w fetch.Want, from, to int64) (io.ReadCloser, error) {
	rc, err := h.Origin.Range(ctx, w, from, to)
	if err != nil {
		return nil, err
	}
	rest := readerFunc(func(p []byte) (int, error) {
		select {
		case <-h.more:
			return rc.Read(p)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	})
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(rc, h.first), rest), rc}, nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// firstWrite is closed when something was written.
type firstWrite chan struct{}

func (f firstWrite) Write(p []byte) (int, error) {
	select {
	case <-f:
	default:
		close(f)
	}
	return len(p), nil
}

func TestFirstByte_DoesNotWaitForTheFirstPiece(t *testing.T) {
	const size = 9 * mb // more than a config may have, which would be looked up in an index
	c := swarmtest.New(t, swarmtest.NewOrigin(0))
	origin := halting{c.Origin, 1000, make(chan struct{})}
	d := c.Origin.Make(size, 1)
	near := c.Start("near", func(o *swarm.Options) { o.Origin = origin })
	c.Start("far", nil)
	f := fetch.New(fetch.Options{Store: near.Store, Fillers: []fetch.Filler{near}, Origin: origin, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(f.Close)
	b, err := f.Get(t.Context(), fetch.Want{Digest: d, Size: size, Namespace: "test", Repo: "r"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got, end := make(firstWrite), make(chan error, 1)
	go func() {
		n, err := f.Copy(t.Context(), got, b, 0, -1)
		if err == nil && n != size {
			err = errors.New("it ended early")
		}
		end <- err
	}()
	select {
	case <-got:
	case err := <-end:
		t.Fatal("no byte came: ", err)
	case <-time.After(20 * time.Second):
		t.Fatal("no byte came although the origin has sent 1,000")
	}
	if b.Has(0) {
		t.Error("the whole piece was there: this shows nothing")
	}
	close(origin.more)
	if err := <-end; err != nil {
		t.Error(err)
	}
}
