package ociclient

import (
	"context"
	"errors"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Outcome is what an upstream's answer, or the lack of one, says about the
// content that was asked for. docs/rights.md has the table.
type Outcome uint8

// The outcomes. Only OK, Denied and NotFound are verdicts: the registry itself
// has said whether the asker may have the content. After any other one nothing
// more is known than before.
const (
	OK          Outcome = iota // 200, or 206 to a question for a range
	Denied                     // 401, 403 or 451 by the registry, or its token service refuses the login
	NotFound                   // 404 or 410 by the registry
	RateLimited                // 429
	Failed                     // any other status, and any refusal by a redirect's target
	Unreachable                // no connection, or it broke
	Stalled                    // a connection, and then nothing for too long
)

var outcomeNames = [...]string{"ok", "denied", "not found", "rate limited", "failed", "unreachable", "stalled"}

func (o Outcome) String() string { return outcomeNames[o] }

// Verdict reports that the registry itself has decided.
func (o Outcome) Verdict() bool { return o <= NotFound }

// outcomeOf reads a status. own says that the registry sent it, and not the host
// that a redirect leads to: what a CDN refuses is no decision of the registry.
func outcomeOf(status int, own bool) Outcome {
	switch {
	case status == http.StatusOK, status == http.StatusPartialContent:
		return OK
	case status == http.StatusTooManyRequests:
		return RateLimited
	case !own:
		return Failed
	}
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusUnavailableForLegalReasons:
		return Denied
	case http.StatusNotFound, http.StatusGone:
		return NotFound
	}
	return Failed
}

// oddity says why an answer of 200 or 206 is not one to q, which was asked with
// the header asked: a portal in between that has everybody log in first answers
// 200 to everything. "" where nothing shows that.
func oddity(r *Response, q question, asked http.Header) string {
	d := r.Digest()
	if r.Status == http.StatusPartialContent && len(asked["Range"]) == 0 {
		return "a part of what was asked for as a whole"
	}
	if d != "" && q.digest != "" && d != q.digest && d.Algorithm() == q.digest.Algorithm() {
		return "another digest than was asked for"
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err == nil && kind == "text/html" && d == "" {
		return "a page of HTML"
	}
	return ""
}

// OutcomeOf reads the error of a question to an upstream.
func OutcomeOf(err error) Outcome {
	var refusal *StatusError
	var service *serviceError
	switch {
	case err == nil:
		return OK
	case errors.As(err, &refusal):
		return refusal.Outcome()
	case errors.As(err, &service):
		return service.outcome
	case timeout(err), errors.Is(err, context.DeadlineExceeded):
		return Stalled
	}
	return Unreachable
}

// pauseMax bounds how long an upstream may have itself left alone by Retry-After.
const pauseMax = 5 * time.Minute

// pauses remembers who was asked by Retry-After (RFC 9110 §10.2.3) not to ask
// again before a certain time.
type pauses struct {
	now  func() time.Time
	mu   sync.Mutex
	last *lru.Cache[string, pause]
}

type pause struct {
	until  time.Time
	status int
}

const pausesMax = 1024

func newPauses(now func() time.Time) *pauses {
	cache, err := lru.New[string, pause](pausesMax)
	if err != nil {
		panic(err) // only for a size below one
	}
	return &pauses{now: now, last: cache}
}

// note reads the Retry-After of an answer to a question of the kind key.
func (p *pauses) note(key string, status int, header http.Header) {
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		return
	}
	if d := retryAfter(header.Get("Retry-After"), p.now()); d > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.last.Add(key, pause{p.now().Add(d), status})
	}
}

// current returns the answer that still stands for questions of the kind key.
func (p *pauses) current(key string) (status int, left time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	found, ok := p.last.Get(key)
	if !ok {
		return 0, 0, false
	}
	left = found.until.Sub(p.now())
	if left <= 0 || left > pauseMax { // it is over, or the clock was set back
		p.last.Remove(key)
		return 0, 0, false
	}
	return found.status, left, true
}

// retryAfter reads delay-seconds or an HTTP-date.
func retryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.Duration(min(max(seconds, 0), int64(pauseMax/time.Second))) * time.Second
	}
	at, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), pauseMax)
}

// seconds is a Retry-After that does not end before left has passed.
func seconds(left time.Duration) string {
	return strconv.FormatInt(int64((left+time.Second-1)/time.Second), 10)
}
