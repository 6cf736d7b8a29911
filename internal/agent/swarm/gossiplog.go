package swarm

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// sayAgain is how long what is wrong with the gossip goes without saying again.
const sayAgain = 10 * time.Minute

// gossipLog passes on what memberlist writes, which is for those who look for an
// error in it, and says for owners what they alone can mend.
type gossipLog struct {
	log  *slog.Logger
	mu   sync.Mutex
	said map[string]time.Time
}

func newGossipLog(log *slog.Logger) *gossipLog {
	return &gossipLog{log: log, said: map[string]time.Time{}}
}

// warn logs a message about something at most every sayAgain.
func (l *gossipLog) warn(about, msg string, args ...any) {
	now := time.Now()
	l.mu.Lock()
	last, said := l.said[about]
	quiet := said && now.Sub(last) < sayAgain
	if !quiet {
		if len(l.said) > 1000 {
			clear(l.said) // names come from others
		}
		l.said[about] = now
	}
	l.mu.Unlock()
	if !quiet {
		l.log.Warn(msg, args...)
	}
}

// Write implements io.Writer for memberlist's lines.
func (l *gossipLog) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	l.log.Log(context.Background(), slog.LevelDebug, text)
	if otherSecret(text) {
		l.warn("secret", "somebody with another secret talks to this agent; agents share only if swarm.secret is the same", "gossip", text)
	}
	return len(line), nil
}

// refused logs what was not handed to memberlist, as memberlist would.
func (l *gossipLog) refused(err error, from net.Addr) {
	_, _ = fmt.Fprintf(l, "[ERR] agent: a packet was dropped: %v from=%v", err, from) // it only logs
}

// otherSecret tells what memberlist says of a message under another key.
func otherSecret(text string) bool {
	text = strings.ToLower(text)
	return strings.Contains(text, "no installed keys could decrypt") || strings.Contains(text, "decrypt packet failed") ||
		strings.Contains(text, "remote state is encrypted and encryption is not configured")
}

// NotifyConflict is part of memberlist.ConflictDelegate.
func (l *gossipLog) NotifyConflict(existing, other *memberlist.Node) {
	l.warn("name "+existing.Name, "two agents have the same name, so that others know one of them only; give each a name of its own",
		"name", existing.Name, "at", existing.Address(), "and_at", other.Address())
}
