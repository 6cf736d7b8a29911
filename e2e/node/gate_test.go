package node

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// gate stands between the agent and the socket of a runtime: it can hold what
// the agent sends, so that an answer comes late, and cut its connections, so
// that events are lost. The runtime's other clients do not notice.
type gate struct {
	path   string
	behind string
	l      net.Listener
	done   sync.WaitGroup

	mu    sync.Mutex
	open  *sync.Cond
	held  bool
	let   int  // how many writes pass although it is held
	shut  bool // refuses connections
	conns map[net.Conn]bool
}

func newGate(t testing.TB, behind string) *gate {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "g-")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{path: filepath.Join(dir, "g.sock"), behind: behind, conns: map[net.Conn]bool{}}
	g.open = sync.NewCond(&g.mu)
	if g.l, err = net.Listen("unix", g.path); err != nil {
		t.Fatal(err)
	}
	g.done.Go(g.accept)
	t.Cleanup(func() {
		_ = g.l.Close() // ends accept
		g.hold(false)
		g.refuse(true)
		g.done.Wait()
	})
	return g
}

func (g *gate) accept() {
	for {
		conn, err := g.l.Accept()
		if err != nil {
			return
		}
		g.mu.Lock()
		shut := g.shut
		g.mu.Unlock()
		out, err := net.Dial("unix", g.behind)
		if err != nil || shut {
			if err == nil {
				_ = out.Close()
			}
			_ = conn.Close()
			continue
		}
		g.mu.Lock()
		g.conns[conn], g.conns[out] = true, true
		g.mu.Unlock()
		g.done.Go(func() { g.copy(out, conn, true) })
		g.done.Go(func() { g.copy(conn, out, false) })
	}
}

// copy moves bytes; those to the runtime wait while the gate is held.
func (g *gate) copy(to, from net.Conn, holds bool) {
	defer g.end(to, from)
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			g.mu.Lock()
			for holds && g.held && g.let == 0 {
				g.open.Wait()
			}
			if holds && g.held {
				g.let--
			}
			g.mu.Unlock()
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (g *gate) end(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		delete(g.conns, c)
		_ = c.Close() // it may be closed already
	}
}

// hold keeps what the agent asks, and lets it go.
func (g *gate) hold(yes bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held, g.let = yes, 0
	g.open.Broadcast()
}

// step lets the next n writes through, of those that there are or will be.
func (g *gate) step(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.let = n
	g.open.Broadcast()
}

// refuse cuts all connections and takes no new ones, until it is told to.
func (g *gate) refuse(yes bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut = yes; yes {
		for c := range g.conns {
			_ = c.Close() // its copies end
		}
	}
}
