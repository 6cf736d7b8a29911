package ociclient

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// token is what a repository's requests are sent with.
type token struct {
	header    string // the whole value of Authorization
	anonymous bool
	until     time.Time
}

const (
	tokensMax    = 1024             // repositories whose tokens are remembered
	tokenLife    = 60 * time.Second // where the service does not say (Docker's token specification)
	tokenMargin  = 5 * time.Second  // for the way, and clocks that run at another pace
	tokenMax     = 1 << 20          // bytes of a token service's answer
	tokenTimeout = 5 * time.Second  // for all of an answer
)

type tokenCache struct{ byRepo *lru.Cache[string, token] }

func newTokenCache() tokenCache {
	cache, err := lru.New[string, token](tokensMax)
	if err != nil {
		panic(err) // only for a size below one
	}
	return tokenCache{cache}
}

func (t tokenCache) get(repo string) (token, bool) {
	found, ok := t.byRepo.Get(repo)
	if !ok || !time.Now().Before(found.until) {
		return token{}, false
	}
	return found, true
}

func (t tokenCache) put(repo string, tok token) { t.byRepo.Add(repo, tok) }
func (t tokenCache) drop(repo string)           { t.byRepo.Remove(repo) }

// known returns the Authorization that repo's requests of a login are worth
// trying with, and whether anybody could come by it.
func (c *Client) known(repo string, l Login) (header string, anonymous bool) {
	if t, ok := c.tokens.get(tokenKey(repo, l)); ok {
		return t.header, t.anonymous
	}
	if c.basic.Load() && l != (Login{}) && l.User != TokenUser {
		return basicAuth(l.User, l.Pass), false
	}
	return "", true
}

// tokenKey has a token used no longer than the login that it was given for.
func tokenKey(repo string, l Login) string { return repo + "\x00" + l.User + "\x00" + l.Pass }

func basicAuth(user, pass string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+pass))
}

// authorize answers an upstream's challenges with what this machine has: its
// credentials, or nobody's. "" says that it has nothing that fits.
func (c *Client) authorize(ctx context.Context, repo string, l Login, challenges []string) (header string, anonymous bool, err error) {
	user, pass, have := l.User, l.Pass, l != (Login{})
	for _, ch := range parseChallenges(challenges) {
		switch {
		case strings.EqualFold(ch.scheme, "bearer") && ch.params["realm"] != "":
			t, err := c.fetchToken(ctx, repo, ch.params, user, pass)
			if err != nil && have && OutcomeOf(err) == Denied {
				// A login that is not valid any more must not keep from what is public.
				if t, anon := c.fetchToken(ctx, repo, ch.params, "", ""); anon == nil {
					c.tokens.put(tokenKey(repo, l), t)
					return t.header, true, nil
				}
			}
			if err != nil {
				return "", false, err
			}
			c.tokens.put(tokenKey(repo, l), t)
			return t.header, t.anonymous, nil
		case strings.EqualFold(ch.scheme, "basic") && have && user != TokenUser:
			c.basic.Store(true)
			return basicAuth(user, pass), false, nil
		}
	}
	return "", false, nil
}

// fetchToken asks the token service that the upstream named (Docker's token
// and OAuth2 specifications, distribution/docs/spec/auth).
func (c *Client) fetchToken(ctx context.Context, repo string, params map[string]string, user, pass string) (token, error) {
	realm, err := url.Parse(params["realm"])
	if err != nil || realm.Host == "" {
		return token{}, &serviceError{Failed, errors.New("the challenge's realm is not a URL")}
	}
	realm.User = nil // whatever login the challenge holds is not this machine's
	if realm.Scheme != "https" && (c.base.Scheme == "https" || realm.Scheme != "http") {
		return token{}, &serviceError{Failed, fmt.Errorf("the realm's scheme %.16q is not to be trusted with credentials", realm.Scheme)}
	}
	scope := params["scope"]
	if scope == "" {
		scope = "repository:" + repo + ":pull"
	}
	key := "token " + realm.Host
	if status, left, ok := c.pauses.current(key); ok {
		return token{}, &serviceError{outcomeOf(status, true), fmt.Errorf("the token service %s answered %d and is left alone for %s", realm.Host, status, left)}
	}
	asking, cancel := context.WithTimeout(ctx, c.idle)
	defer cancel()
	req, err := tokenRequest(asking, realm, params["service"], scope, user, pass)
	if err != nil {
		return token{}, &serviceError{Failed, err}
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Accept-Encoding", "identity")
	service := http.Client{Transport: c.http.Transport, CheckRedirect: sameOrigin}
	res, err := service.Do(req)
	if err != nil {
		var where *url.Error
		if errors.As(err, &where) {
			err = where.Err // its URL holds the account's name
		}
		outcome := Unreachable
		if timeout(err) {
			outcome = Stalled
		}
		return token{}, &serviceError{outcome, fmt.Errorf("ask the token service %s: %w", realm.Host, err)}
	}
	defer func() { _ = res.Body.Close() }() // it was only read
	c.pauses.note(key, res.StatusCode, res.Header)
	if res.StatusCode != http.StatusOK {
		outcome := Failed
		switch res.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			outcome = Denied
		case http.StatusTooManyRequests:
			outcome = RateLimited
		}
		return token{}, &serviceError{outcome, fmt.Errorf("the token service %s answers %d", realm.Host, res.StatusCode)}
	}
	t, err := readToken(res.Body, realm.Host, user == "" && pass == "")
	if err != nil {
		outcome := Failed
		if asking.Err() != nil {
			outcome = Stalled
		}
		return token{}, &serviceError{outcome, err}
	}
	return t, nil
}

// sameOrigin keeps a login, which may be in a request's body, with the service
// that it is for.
func sameOrigin(req *http.Request, via []*http.Request) error {
	if first := via[0].URL; req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		return fmt.Errorf("it redirects to another host, %s", req.URL.Host)
	}
	return redirect(req, via)
}

// serviceError says why a token service gave no token.
type serviceError struct {
	outcome Outcome
	error
}

func (e *serviceError) Unwrap() error { return e.error }

func tokenRequest(ctx context.Context, realm *url.URL, service, scope, user, pass string) (*http.Request, error) {
	q := url.Values{}
	if service != "" {
		q.Set("service", service)
	}
	if user == TokenUser {
		q.Set("grant_type", "refresh_token")
		q.Set("refresh_token", pass)
		q.Set("client_id", "fairway")
		q.Set("scope", scope)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(q.Encode()))
		if err != nil {
			return nil, fmt.Errorf("make the token request: %w", err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return req, nil
	}
	for one := range strings.FieldsSeq(scope) {
		q.Add("scope", one)
	}
	u := *realm
	given := u.Query()
	for k, v := range q {
		given[k] = v
	}
	u.RawQuery = given.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make the token request: %w", err)
	}
	if user != "" || pass != "" {
		req.SetBasicAuth(user, pass)
	}
	return req, nil
}

func readToken(r io.Reader, host string, anonymous bool) (token, error) {
	var body struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"` // seconds
	}
	if err := json.NewDecoder(io.LimitReader(r, tokenMax)).Decode(&body); err != nil {
		return token{}, fmt.Errorf("read the answer of the token service %s: %w", host, err)
	}
	if body.Token == "" {
		body.Token = body.AccessToken
	}
	if body.Token == "" || strings.ContainsAny(body.Token, "\r\n") {
		return token{}, fmt.Errorf("the token service %s answers without a token", host)
	}
	life := tokenLife
	if body.ExpiresIn > 0 {
		life = time.Duration(min(body.ExpiresIn, 86400) * float64(time.Second))
	}
	return token{header: "Bearer " + body.Token, anonymous: anonymous, until: time.Now().Add(life - tokenMargin)}, nil
}

// challenge is one of WWW-Authenticate (RFC 9110 §11.6.1).
type challenge struct {
	scheme string
	params map[string]string
}

// parseChallenges reads all challenges of all header lines; what it does not
// understand it leaves out.
func parseChallenges(lines []string) []challenge {
	var all []challenge
	for _, line := range lines {
		for rest := line; ; {
			rest = strings.TrimLeft(rest, " \t,")
			if rest == "" {
				break
			}
			word := rest[:tokenLen(rest)]
			if word == "" {
				break
			}
			rest = strings.TrimLeft(rest[len(word):], " \t")
			if value, ok := strings.CutPrefix(rest, "="); ok {
				var v string
				v, rest = paramValue(strings.TrimLeft(value, " \t"))
				if len(all) > 0 {
					all[len(all)-1].params[strings.ToLower(word)] = v
				}
				continue
			}
			all = append(all, challenge{word, map[string]string{}})
		}
	}
	return all
}

// tokenLen is the length of the token (RFC 9110 §5.6.2) that s begins with.
func tokenLen(s string) int {
	n := 0
	for n < len(s) && s[n] > ' ' && s[n] < 0x7f && strings.IndexByte(`"(),/:;<=>?@[\]{}`, s[n]) < 0 {
		n++
	}
	return n
}

func paramValue(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, " \t,")
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		case '"':
			return b.String(), s[i+1:]
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "" // its end is missing, so half of it may be
}
