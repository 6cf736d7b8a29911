package swarm

import (
	"bytes"
	"compress/lzw"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"github.com/fairway-registry/fairway/internal/agent/swarm/plan"
)

// sealed is what memberlist makes of a message in that version of its encryption.
func sealed(t *testing.T, key []byte, version byte, message, data []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, 12)
	_, _ = rand.Read(nonce)
	return append(append([]byte{version}, nonce...), aead.Seal(nil, nonce, message, data)...)
}

// streamed is a message as it is sent over TCP.
func streamed(t *testing.T, key []byte, version byte, message []byte) []byte {
	t.Helper()
	head := binary.BigEndian.AppendUint32([]byte{gossipEncrypt}, uint32(sealHead+len(message)+sealTail))
	return append(head, sealed(t, key, version, message, head)...)
}

func packed(t *testing.T, kind byte, v any) []byte {
	t.Helper()
	b := bytes.NewBuffer([]byte{kind})
	if err := codec.NewEncoder(b, &codec.MsgpackHandle{}).Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compressed(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := lzw.NewWriter(&b, lzw.LSB, 8)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return packed(t, gossipCompress, struct {
		Algo uint8
		Buf  []byte
	}{0, b.Bytes()})
}

func compound(parts ...[]byte) []byte {
	p := []byte{gossipCompound, byte(len(parts))}
	for _, x := range parts {
		p = binary.BigEndian.AppendUint16(p, uint16(len(x)))
	}
	return append(p, bytes.Join(parts, nil)...)
}

func guardedKeys(t *testing.T) *Keys {
	t.Helper()
	k, err := NewKeys([]byte("a secret of some length"), "n")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newTestGuard(t *testing.T) (*guard, []byte) {
	t.Helper()
	k := guardedKeys(t)
	base, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{"127.0.0.1"}, Logger: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)})
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGuard(base, k.Gossip, func(error, net.Addr) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Shutdown() })
	return g, k.Gossip
}

// TestR16_GossipIsHandedOnWithinBounds has memberlist see only what a member may have
// sent: it panics on some of the rest, and takes any amount of memory for some.
func TestR16_GossipIsHandedOnWithinBounds(t *testing.T) {
	g, key := newTestGuard(t)
	ping := packed(t, 0, struct{ SeqNo uint32 }{1})
	state := func(nodes, user int) []byte {
		return packed(t, gossipPushPull, struct{ Nodes, UserStateLen int }{nodes, user})
	}
	members := append(state(1000, 0), make([]byte, 32*1000)...)
	bomb := compressed(t, make([]byte, guardMessage+1))
	for _, c := range []struct {
		name           string
		message        []byte
		version        byte
		packet, stream bool // whether it is handed on
	}{
		{"a ping", ping, 1, true, true},
		{"a compressed ping", compressed(t, ping), 1, true, true},
		{"parts", compound(ping, ping), 1, true, true},
		{"compressed parts", compressed(t, compound(ping, ping)), 1, true, true},
		{"a state of members", members, 1, true, true},
		{"a compressed state", compressed(t, members), 1, true, true},
		{"a large compressed state", compressed(t, append(state(1000, 0), make([]byte, guardStream)...)), 1, false, true},

		{"nothing", nil, 1, false, false},
		{"nothing, compressed", compressed(t, nil), 1, false, false},
		{"a padding that cannot be", []byte{200, 200}, 0, false, false},
		{"a compressed message without content", []byte{gossipCompress}, 1, false, false},
		{"more than fits, compressed", bomb, 1, false, false},
		{"compressed twice", compressed(t, compressed(t, ping)), 1, false, true},
		{"compressed in parts", compound(compressed(t, ping)), 1, false, true},
		{"parts in parts", compound(compound(ping)), 1, false, true},
		{"parts without an end", []byte{gossipCompound, 9, 0}, 1, false, true},
		{"a state that claims a million members", state(1<<20, 0), 1, true, false},
		{"a state that claims 20 MB of more", state(0, 20<<20), 1, true, false},
		{"a state that claims that, compressed", compressed(t, state(1<<20, 0)), 1, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := g.packet(sealed(t, key, c.version, c.message, nil)); (err == nil) != c.packet {
				t.Errorf("as a packet: %v", err)
			}
			sum := append([]byte{gossipCRC, 0, 0, 0, 0}, c.message...)
			if err := g.packet(sealed(t, key, c.version, sum, nil)); (err == nil) != c.packet && len(c.message) > 0 {
				t.Errorf("as a packet with a sum: %v", err)
			}
			there, here := net.Pipe()
			defer there.Close()
			sent := streamed(t, key, c.version, c.message)
			go func() { _, _ = there.Write(sent) }()
			s := g.admit(here)
			defer s.Close()
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(s, got); (err == nil) != c.stream {
				t.Errorf("as a stream: %v", err)
			} else if err == nil && !bytes.Equal(got, sent) {
				t.Error("memberlist reads something else")
			}
		})
	}
}

// TestR16_AnyMessageOfAnotherKeyIsDropped also if somebody who does not know the key
// changes the version of a member's message, which is not authenticated.
func TestR16_AnyMessageOfAnotherKeyIsDropped(t *testing.T) {
	g, key := newTestGuard(t)
	other := bytes.Repeat([]byte{7}, 32)
	if err := g.packet(sealed(t, other, 1, []byte{0}, nil)); !errors.Is(err, errSecret) {
		t.Errorf("another key: %v", err)
	}
	p := sealed(t, key, 1, []byte{2, 200}, nil)
	if p[0] = 0; g.packet(p) == nil {
		t.Error("a packet whose version was changed was handed on")
	}
	for _, short := range [][]byte{nil, {1}, make([]byte, 29)} {
		if g.packet(short) == nil {
			t.Errorf("%d bytes were handed on", len(short))
		}
	}
}

// from is a connection from an address.
type from struct {
	net.Conn
	addr   string
	closed chan struct{}
}

func (c *from) RemoteAddr() net.Addr {
	a, _ := net.ResolveTCPAddr("tcp", c.addr)
	return a
}

func (c *from) Close() error {
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	return c.Conn.Close()
}

func (c *from) open() bool {
	select {
	case <-c.closed:
		return false
	default:
		return true
	}
}

// TestR17_GossipStreamsOfOneHostPushOutItsOwn whatever their number and size.
func TestR17_GossipStreamsOfOneHostPushOutItsOwn(t *testing.T) {
	g, _ := newTestGuard(t)
	connect := func(addr string) (*from, net.Conn, net.Conn) {
		there, here := net.Pipe()
		c := &from{here, addr, make(chan struct{})}
		t.Cleanup(func() { _ = there.Close() })
		return c, g.admit(c), there
	}
	member, _, _ := connect("10.0.0.1:1")
	var hostile []*from
	for range guardRoom/guardStream + 50 {
		c, _, _ := connect("10.0.0.2:1")
		hostile = append(hostile, c)
	}
	if !member.open() {
		t.Error("the stream of another host was closed")
	}
	left := len(slices.DeleteFunc(slices.Clone(hostile), func(c *from) bool { return !c.open() }))
	if left != guardRoom/guardStream-1 || hostile[0].open() || !hostile[len(hostile)-1].open() {
		t.Errorf("%d streams are open", left)
	}

	// What comes without a key counts as it comes.
	head := binary.BigEndian.AppendUint32([]byte{gossipEncrypt}, guardMessage)
	big, s, there := connect("10.0.0.2:1")
	go func() { _, _ = s.Read(make([]byte, 1)) }()
	if _, err := there.Write(append(head, make([]byte, guardMessage/2)...)); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	all, held := g.held, s.(*guarded).held
	g.mu.Unlock()
	if all > guardRoom || held < guardMessage/2 {
		t.Errorf("%d bytes are counted, %d of one stream", all, held)
	}
	if !member.open() || !big.open() {
		t.Error("the wrong stream was closed")
	}
	// A message that is larger than any is refused at its head.
	_, s, there = connect("10.0.0.3:1")
	go func() { _, _ = there.Write(binary.BigEndian.AppendUint32([]byte{gossipEncrypt}, guardMessage+1)) }()
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a message of more than guardMessage was begun")
	}
	_ = s.Close()
	for _, c := range append(hostile, member, big) {
		_ = c.Close()
	}
}

// TestR17_GossipStreamsThatAreClosedCountNoMore so that honest ones find room for ever.
func TestR17_GossipStreamsThatAreClosedCountNoMore(t *testing.T) {
	g, key := newTestGuard(t)
	content := append([]byte{0}, make([]byte, 4*guardStream)...)
	for n := range 3 * guardLarge {
		large := streamed(t, key, 1, content)
		if n%2 == 1 {
			large = streamed(t, key, 1, compressed(t, content))
		}
		there, here := net.Pipe()
		s := g.admit(here)
		go func() { _, _ = there.Write(large) }()
		if _, err := io.ReadFull(s, make([]byte, len(large))); err != nil {
			t.Fatal(err)
		}
		if len(g.large) != 1 {
			t.Fatalf("%d large messages are counted", len(g.large))
		}
		_ = s.Close()
		_ = s.Close()
		_ = there.Close()
	}
	if g.held != 0 || len(g.hosts) != 0 || len(g.large) != 0 {
		t.Errorf("%d bytes of %d hosts and %d large messages are left", g.held, len(g.hosts), len(g.large))
	}
}

// TestR16_NewMembersAreBounded though those that are known may say what they like.
func TestR16_NewMembersAreBounded(t *testing.T) {
	k := guardedKeys(t)
	g, err := NewGossip(GossipOptions{Self: Peer{Node: "n", Addr: "127.0.0.1:1"}, Keys: k, Bind: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := NewGossip(GossipOptions{Self: Peer{Node: plan.Node(bytes.Repeat([]byte("n"), guardName+1))}, Keys: k, Bind: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("this node has a name that no member takes")
	}
	at := net.IPv4(127, 0, 0, 1).To4()
	for name, n := range map[string]*memberlist.Node{
		"no name":     {Addr: at},
		"a long name": {Name: string(bytes.Repeat([]byte("n"), guardName+1)), Addr: at},
		"no address":  {Name: "m"},
		"much to say": {Name: "m", Addr: at, Meta: make([]byte, memberlist.MetaMaxSize+1)},
	} {
		if g.NotifyAlive(n) == nil {
			t.Errorf("a member with %s was taken", name)
		}
	}
	taken := 0
	began := time.Now()
	for range 2 * guardNames {
		if g.NotifyAlive(&memberlist.Node{Name: "m", Addr: at}) == nil {
			taken++
		}
	}
	if most := guardNames + guardNewName*int(1+time.Since(began).Seconds()); taken > most {
		t.Errorf("%d new members were taken at once", taken)
	}
	if err := g.NotifyAlive(&memberlist.Node{Name: "n", Addr: at}); err != nil {
		t.Errorf("a member that is known: %v", err)
	}
}
