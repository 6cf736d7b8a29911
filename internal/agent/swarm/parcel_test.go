package swarm

import (
	"errors"
	"net"
	"sync"
	"testing"
)

// writes is a connection that notes what is written at once.
type writes struct {
	net.Conn
	all []string
	err error
}

func (w *writes) Write(p []byte) (int, error) {
	w.all = append(w.all, string(p))
	return len(p), w.err
}

func TestParcel(t *testing.T) {
	conn := &writes{}
	p := &parcel{Conn: conn, shared: &sync.Pool{}}
	write := func(s string) error { _, err := p.Write([]byte(s)); return err }
	step := func(want ...string) {
		t.Helper()
		if len(conn.all) != len(want) {
			t.Fatalf("%q was written, want %q", conn.all, want)
		}
		for i := range want {
			if conn.all[i] != want[i] {
				t.Errorf("%q was written, want %q", conn.all, want)
			}
		}
		conn.all = nil
	}
	_, _ = write("a"), write("b")
	step("a", "b")
	if err := p.together(func() error { return errors.Join(write("c"), write("d"), write("e")) }); err != nil {
		t.Error(err)
	}
	step("cde")
	if err := p.together(func() error { return nil }); err != nil {
		t.Error(err)
	}
	step()
	_ = write("f")
	step("f")

	ours := errors.New("ours")
	if err := p.together(func() error { _ = write("g"); return ours }); !errors.Is(err, ours) {
		t.Errorf("the error was %v", err)
	}
	step("g") // TLS has counted it
	conn.err = errors.New("cut")
	if err := p.together(func() error { return write("h") }); !errors.Is(err, conn.err) {
		t.Errorf("the error of the connection was lost: %v", err)
	}
	if err := (*parcel)(nil).together(func() error { return ours }); !errors.Is(err, ours) {
		t.Errorf("the error was %v", err)
	}
}
