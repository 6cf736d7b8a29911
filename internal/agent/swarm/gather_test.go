package swarm

import (
	"bytes"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pair returns both ends of a connection over loopback.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if near, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	limit := time.Now().Add(30 * time.Second)
	_, _ = near.SetDeadline(limit), far.SetDeadline(limit)
	return near, far
}

func markOf(t *testing.T, c net.Conn) (mark int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		mark, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVLOWAT)
	}); err != nil {
		t.Fatal(err)
	}
	return mark
}

// TestGather_NeverWaitsForMoreThanComes reads pieces whose bytes come in small
// parts from a sender that goes on only when it has been answered.
func TestGather_NeverWaitsForMoreThanComes(t *testing.T) {
	near, far := pair(t)
	g := newGather(near, &sync.Pool{})
	const size = 256 << 10
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * 7)
	}
	for _, above := range []int{0, 1000, 100_000} { // read already, and in the buffers above
		sent := make(chan error, 1)
		go func() {
			for rest := content[above:]; len(rest) > 0; {
				n := min(len(rest), 1448)
				if _, err := far.Write(rest[:n]); err != nil {
					sent <- err
					return
				}
				rest = rest[n:]
			}
			sent <- nil
		}()
		a := incoming{g: g, before: g.total.Load() - int64(above) - 500, consumed: 500}
		a.expect(size)
		got := make([]byte, size-above)
		low, marks := g.coming.Load(), map[int]bool{}
		for n := 0; n < len(got); {
			m, err := g.Read(got[n:min(len(got), n+5000)])
			if err != nil {
				t.Fatalf("with %d bytes above, after %d: %v", above, n, err)
			}
			n += m
			marks[g.mark] = true
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, content[above:]) {
			t.Error("other bytes came")
		}
		if low <= 0 || !marks[gatherMark] {
			t.Errorf("it waited for single packets: %d bytes expected, marks %v", low, marks)
		}
		if g.room != nil {
			t.Error("afterwards it keeps a buffer")
		}
		// A message that nobody announced comes at once.
		if _, err := far.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := g.Read(make([]byte, 100)); n != 1 || err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		if mark := markOf(t, near); mark != 1 {
			t.Errorf("afterwards it waits for %d bytes", mark)
		}
	}
}

// TestGather_TheKernelWaitsForAPart looks at the socket while much is to come.
func TestGather_TheKernelWaitsForAPart(t *testing.T) {
	near, far := pair(t)
	g := newGather(near, &sync.Pool{})
	(&incoming{g: g}).expect(1 << 20)
	if _, err := far.Write(make([]byte, gatherMark)); err != nil {
		t.Fatal(err)
	}
	if n, err := g.Read(make([]byte, 100)); n != 100 || err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if mark := markOf(t, near); mark != gatherMark {
		t.Errorf("packets wake the reader from %d bytes on", mark)
	}
}

// TestGather_APeerThatBreaksOffIsNotWaitedFor ends a connection in the middle of
// what was expected.
func TestGather_APeerThatBreaksOffIsNotWaitedFor(t *testing.T) {
	near, far := pair(t)
	g := newGather(near, &sync.Pool{})
	(&incoming{g: g}).expect(1 << 20)
	if _, err := far.Write([]byte("some")); err != nil {
		t.Fatal(err)
	}
	_ = far.Close()
	if got, err := io.ReadAll(g); string(got) != "some" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	if g.room != nil {
		t.Error("it keeps a buffer")
	}
	(&incoming{}).expect(1) // where a connection is not one of these
}
