package blob

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/oci"
)

// ErrUnproven says that a store does not have the mark of the database's own
// storage at the moment, so that nothing it says about an object counts.
var ErrUnproven = errors.New("the storage does not have the identity that the database knows")

// Paired is the store of one database. It looks for the mark before each Delete
// and Walk, before and after what it writes, and whenever an object seems to be
// missing: what was looked at without the mark fails with ErrUnproven. So a disk
// that disappears ends deletes and writes at once, and what it held is missing
// to nobody.
type Paired struct {
	store Store
	id    string
}

// Pair returns store for the database that knows it as id.
func Pair(store Store, id string) *Paired { return &Paired{store: store, id: id} }

// Prove returns ErrUnproven, as a fault that says to try again later, unless
// the store has its mark.
func (p *Paired) Prove(ctx context.Context) error {
	found, err := p.store.Identity(ctx, "")
	if err == nil && found == p.id {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = fmt.Errorf("it has %q, want %q", found, p.id)
	}
	return fault.Wrap(fault.Busy, fmt.Errorf("%w: %w", ErrUnproven, err),
		"the registry's storage is not there: its disk may not be mounted. Nothing is written or deleted until it is back").WithCode(oci.CodeUnknown)
}

// Prove asks a Paired store for its proof. Any other store is taken as it is.
func Prove(ctx context.Context, s Store) error {
	if p, ok := s.(*Paired); ok {
		return p.Prove(ctx)
	}
	return nil
}

// missing returns err, which says that an object is missing, if the store is
// the right one even now.
func (p *Paired) missing(ctx context.Context, err error) error {
	if !errors.Is(err, ErrNotFound) {
		return err
	}
	if unproven := p.Prove(ctx); unproven != nil {
		return unproven
	}
	return err
}

// Append implements Store.
func (p *Paired) Append(ctx context.Context, key string, offset int64) (Appender, error) {
	if err := p.Prove(ctx); err != nil {
		return nil, err
	}
	a, err := p.store.Append(ctx, key, offset)
	if err != nil {
		return nil, p.missing(ctx, err)
	}
	return &pairedAppender{Appender: a, p: p, ctx: context.WithoutCancel(ctx)}, nil
}

type pairedAppender struct {
	Appender
	p   *Paired
	ctx context.Context
}

// Commit implements Appender. Bytes that went to another storage are not durable.
func (a *pairedAppender) Commit() error {
	err := a.Appender.Commit()
	if unproven := a.p.Prove(a.ctx); unproven != nil {
		return unproven
	}
	return err
}

// Open implements Store.
func (p *Paired) Open(ctx context.Context, key string) (Reader, error) {
	r, err := p.store.Open(ctx, key)
	if err != nil {
		return nil, p.missing(ctx, err)
	}
	return r, nil
}

// Delete implements Store.
func (p *Paired) Delete(ctx context.Context, key string) (int64, error) {
	if err := p.Prove(ctx); err != nil {
		return 0, err
	}
	freed, err := p.store.Delete(ctx, key)
	return freed, p.missing(ctx, err)
}

// Walk implements Store. A walk that ends without an error was one of the right
// store to its end.
func (p *Paired) Walk(ctx context.Context, after string, fn func(Info) error) error {
	if err := p.Prove(ctx); err != nil {
		return err
	}
	if err := p.store.Walk(ctx, after, fn); err != nil {
		return err
	}
	return p.Prove(ctx)
}

// Identity implements Store.
func (p *Paired) Identity(ctx context.Context, give string) (string, error) {
	return p.store.Identity(ctx, give)
}
