package swarm

import (
	"bytes"
	"compress/lzw"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"
)

// Bounds of gossip. The members of 10,000 nodes are a state of 3 MB.
const (
	guardRoom     = 16 << 20  // bytes of streams that are coming in, all together
	guardStream   = 128 << 10 // of these, what a stream counts for at least: so there are 128 of them
	guardMessage  = 8 << 20   // of one stream's message, as it comes and decompressed
	guardPacket   = 64 << 10  // of a packet, decompressed
	guardLarge    = 2         // messages above guardStream that are worked on at once
	guardPatience = 10 * time.Second
	guardNode     = 32 // bytes that a member of a state takes at least

	guardNames   = 16_384 // new names that are taken at once
	guardNewName = 100    // and then each second
	guardName    = 255    // bytes of a name
)

// Of memberlist's wire format, as far as it has to be understood here.
const (
	gossipPushPull = 6
	gossipCompound = 7
	gossipCompress = 9
	gossipEncrypt  = 10
	gossipCRC      = 12

	sealVersion = 1 // AES-GCM without padding; version 0 panics on a padding that cannot be
	sealHead    = 1 + 12
	sealTail    = 16
)

// errSecret contains what otherSecret looks for.
var errSecret = errors.New("no installed keys could decrypt the message")

var errLarge = errors.New("a gossip message is too large when it is decompressed")

// guard is memberlist's transport with bounds on what others send, of whom some do not
// know the secret, and those who do may be hostile. memberlist itself reads up to 20 MB
// from anybody before it looks at the key, takes any number of connections,
// decompresses 40 MB of a packet, and panics on an empty message.
type guard struct {
	*memberlist.NetTransport
	aead    cipher.AEAD
	refused func(err error, from net.Addr)
	packets chan *memberlist.Packet
	streams chan net.Conn
	closing chan struct{}
	once    sync.Once
	large   chan struct{} // a place for each large message that is worked on
	names   *rate.Limiter

	mu    sync.Mutex
	held  int // bytes of all streams
	hosts map[netip.Addr]*guardHost
}

// guardHost is who sends streams.
type guardHost struct {
	held    int
	streams []*guarded // the oldest in front
}

func newGuard(base *memberlist.NetTransport, key []byte, refused func(error, net.Addr)) (*guard, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use the key of the gossip: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("use the key of the gossip: %w", err)
	}
	g := &guard{
		NetTransport: base, aead: aead, refused: refused, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
		closing: make(chan struct{}), large: make(chan struct{}, guardLarge), names: rate.NewLimiter(guardNewName, guardNames),
		hosts: map[netip.Addr]*guardHost{},
	}
	go g.pump()
	return g, nil
}

// pump hands on what may be. It goes on taking from the base until that is shut down,
// which waits for the next message.
func (g *guard) pump() {
	for {
		select {
		case p := <-g.NetTransport.PacketCh():
			if err := g.packet(p.Buf); err != nil {
				g.refused(err, p.From)
				continue
			}
			select {
			case g.packets <- p:
			case <-g.closing:
			}
		case c := <-g.NetTransport.StreamCh():
			select {
			case g.streams <- g.admit(c):
			case <-g.closing:
				_ = c.Close() // nothing was read from it
			}
		case <-g.closing:
			return
		}
	}
}

// PacketCh is part of memberlist.Transport.
func (g *guard) PacketCh() <-chan *memberlist.Packet { return g.packets }

// StreamCh is part of memberlist.Transport.
func (g *guard) StreamCh() <-chan net.Conn { return g.streams }

// DialTimeout is part of memberlist.Transport.
func (g *guard) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return g.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout is part of memberlist.NodeAwareTransport. What the other one
// answers is bounded, too.
func (g *guard) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	c, err := g.NetTransport.DialAddressTimeout(a, timeout)
	if err != nil {
		return nil, err
	}
	return &guarded{Conn: c, g: g}, nil
}

// Shutdown is part of memberlist.Transport.
func (g *guard) Shutdown() error {
	err := g.NetTransport.Shutdown()
	g.once.Do(func() { close(g.closing) })
	return err
}

// open decrypts what memberlist has sealed.
func (g *guard) open(p, data []byte) ([]byte, error) {
	if len(p) <= sealHead+sealTail || p[0] != sealVersion {
		return nil, fmt.Errorf("a gossip message of %d bytes that was not encrypted as agents do", len(p))
	}
	plain, err := g.aead.Open(nil, p[1:sealHead], p[sealHead:], data)
	if err != nil {
		return nil, errSecret
	}
	return plain, nil
}

// packet reports why a packet is not handed on.
func (g *guard) packet(p []byte) error {
	plain, err := g.open(p, nil)
	if err != nil {
		return err
	}
	if len(plain) >= 5 && plain[0] == gossipCRC {
		plain = plain[5:]
	}
	return bounded(plain, false)
}

// bounded reports why a message of a packet is not handed on: memberlist goes into
// messages within messages as deep as they are.
func bounded(p []byte, inner bool) error {
	if len(p) == 0 {
		return errors.New("an empty gossip message")
	}
	switch {
	case p[0] == gossipCompress && inner:
		return errors.New("a gossip message that is compressed within another")
	case p[0] == gossipCompress:
		content, err := decompressed(p, guardPacket)
		if err != nil {
			return err
		}
		return bounded(content, true)
	case p[0] == gossipCompound:
		return boundedParts(p[1:])
	}
	return nil
}

// boundedParts looks at the parts of a compound message: their number, their lengths,
// the parts. Those that are cut off are memberlist's to report.
func boundedParts(p []byte) error {
	if len(p) == 0 || len(p) < 1+2*int(p[0]) {
		return errors.New("a gossip message without its parts")
	}
	lengths, rest := p[1:1+2*int(p[0])], p[1+2*int(p[0]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(rest) {
			return nil
		}
		if n > 0 && (rest[0] == gossipCompound || rest[0] == gossipCompress) {
			return errors.New("a gossip message of many parts within another")
		}
		rest = rest[n:]
	}
	return nil
}

// decompressed returns the content of a compressed message, at most limit bytes.
func decompressed(p []byte, limit int) ([]byte, error) {
	var c struct {
		Algo uint8
		Buf  []byte
	}
	if err := codec.NewDecoderBytes(p[1:], &codec.MsgpackHandle{}).Decode(&c); err != nil {
		return nil, fmt.Errorf("read a compressed gossip message: %w", err)
	}
	r := lzw.NewReader(bytes.NewReader(c.Buf), lzw.LSB, 8)
	defer func() { _ = r.Close() }() // it was only read
	content, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("decompress a gossip message: %w", err)
	}
	if len(content) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", errLarge, limit)
	}
	return content, nil
}

// admit takes a stream in. Where there is no room for it, the oldest of the host that has
// most goes: who opens many pushes out its own.
func (g *guard) admit(c net.Conn) net.Conn {
	s := &guarded{Conn: c, g: g, counted: true}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		s.host = a.Addr().Unmap()
	}
	g.mu.Lock()
	h := g.hosts[s.host]
	if h == nil {
		h = &guardHost{}
		g.hosts[s.host] = h
	}
	h.streams = append(h.streams, s)
	gone := g.take(s, guardStream)
	g.mu.Unlock()
	closeAll(gone)
	return s
}

// take counts bytes of a stream, and returns the streams that make room. g.mu is held.
func (g *guard) take(s *guarded, n int) (gone []*guarded) {
	s.held += n
	g.hosts[s.host].held += n
	g.held += n
	for g.held > guardRoom {
		var most *guardHost
		for _, h := range g.hosts {
			if most == nil || h.held > most.held {
				most = h
			}
		}
		oldest := most.streams[0]
		oldest.pushed = true
		g.release(oldest)
		gone = append(gone, oldest)
	}
	return gone
}

// release ends the account of a stream. g.mu is held.
func (g *guard) release(s *guarded) {
	h := g.hosts[s.host]
	if !s.counted || h == nil {
		return
	}
	s.counted = false
	g.held -= s.held
	h.held -= s.held
	for i, x := range h.streams {
		if x == s {
			h.streams = append(h.streams[:i], h.streams[i+1:]...)
			break
		}
	}
	if len(h.streams) == 0 {
		delete(g.hosts, s.host)
	}
}

func closeAll(streams []*guarded) {
	for _, s := range streams {
		_ = s.Conn.Close() // its reader gets an error
	}
}

// guarded is a stream of which memberlist reads one message, when all of it is here and
// was found to be a member's.
type guarded struct {
	net.Conn
	g    *guard
	host netip.Addr
	read bool
	err  error
	rest *bytes.Reader

	large bool // has one of g's places for large messages

	// Guarded by g.mu.
	counted bool // in g
	held    int
	pushed  bool // made room for others
}

// Read implements io.Reader.
func (s *guarded) Read(p []byte) (int, error) {
	if !s.read {
		s.read = true
		var message []byte
		message, s.err = s.message()
		s.rest = bytes.NewReader(message)
	}
	if s.err != nil {
		return 0, s.err
	}
	return s.rest.Read(p)
}

// Close implements io.Closer.
func (s *guarded) Close() error {
	s.g.mu.Lock()
	s.g.release(s)
	s.g.mu.Unlock()
	if s.large {
		s.large = false
		<-s.g.large
	}
	return s.Conn.Close()
}

// message reads the message of a stream as it came.
func (s *guarded) message() ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(s.Conn, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != gossipEncrypt || n > guardMessage {
		return nil, fmt.Errorf("a gossip stream of kind %d with %d bytes", head[0], n)
	}
	message := bytes.NewBuffer(head[:])
	for left := int(n); left > 0; {
		part, err := io.CopyN(message, s.Conn, int64(min(left, guardStream)))
		if err == nil {
			err = s.more(int(part))
		}
		if err != nil {
			return nil, err
		}
		left -= int(part)
	}
	return message.Bytes(), s.check(message.Bytes())
}

// more counts bytes that have come.
func (s *guarded) more(n int) error {
	s.g.mu.Lock()
	var gone []*guarded
	if s.counted {
		gone = s.g.take(s, n)
	}
	pushed := s.pushed
	s.g.mu.Unlock()
	closeAll(gone)
	if pushed {
		return errors.New("a gossip stream made room for others")
	}
	return nil
}

// check reports why a message is not handed on.
func (s *guarded) check(message []byte) error {
	plain, err := s.g.open(message[5:], message[:5])
	if err != nil {
		return err
	}
	if len(message) > guardStream {
		if err := s.wait(); err != nil {
			return err
		}
	}
	if plain[0] == gossipCompress {
		if plain, err = s.content(plain); err != nil {
			return err
		}
	}
	if len(plain) == 0 {
		return errors.New("an empty gossip message")
	}
	if plain[0] != gossipPushPull {
		return nil
	}
	var header struct{ Nodes, UserStateLen int }
	if err := codec.NewDecoderBytes(plain[1:], &codec.MsgpackHandle{}).Decode(&header); err != nil {
		return fmt.Errorf("read the header of a state: %w", err)
	}
	if header.Nodes > len(plain)/guardNode || header.UserStateLen > len(plain) {
		return fmt.Errorf("a state of %d bytes that claims %d nodes and %d bytes", len(plain), header.Nodes, header.UserStateLen)
	}
	return nil
}

// content decompresses a message. A large one waits for its place.
func (s *guarded) content(p []byte) ([]byte, error) {
	content, err := decompressed(p, guardStream)
	if err == nil || !errors.Is(err, errLarge) {
		return content, err
	}
	if err := s.wait(); err != nil {
		return nil, err
	}
	return decompressed(p, guardMessage)
}

// wait gets a place for a large message, until the stream is closed.
func (s *guarded) wait() error {
	if s.large {
		return nil
	}
	patience := time.NewTimer(guardPatience)
	defer patience.Stop()
	select {
	case s.g.large <- struct{}{}:
		s.large = true
		return nil
	case <-patience.C:
		return errors.New("too many large gossip messages at once")
	}
}

// NotifyAlive is part of memberlist.AliveDelegate: it refuses members that cannot be, and
// more new names than a cluster has. memberlist keeps each for half a minute at least.
func (g *Gossip) NotifyAlive(n *memberlist.Node) error {
	if n.Name == "" || len(n.Name) > guardName || len(n.Meta) > memberlist.MetaMaxSize || len(n.Addr) != net.IPv4len && len(n.Addr) != net.IPv6len {
		return fmt.Errorf("a member with a name of %d bytes and an address of %d", len(n.Name), len(n.Addr))
	}
	g.mu.Lock()
	_, known := g.members[n.Name]
	g.mu.Unlock()
	if !known && !g.guard.names.Allow() {
		return errors.New("too many new members at once")
	}
	return nil
}
