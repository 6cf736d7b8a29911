package ociclient

import (
	"net/url"
	"strings"
)

// SplitUser takes the user and password out of a URL, which is shown, logged and
// compared without them.
func SplitUser(u *url.URL) (clean *url.URL, user, pass string, ok bool) {
	if u == nil || u.User == nil {
		return u, "", "", false
	}
	c := *u
	c.User = nil
	pass, _ = u.User.Password()
	return &c, u.User.Username(), pass, true
}

// Shown is a URL as it may be shown and logged.
func Shown(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return Redact(text)
	}
	clean, _, _, _ := SplitUser(u)
	return clean.String()
}

// Redact takes what may be a user and password out of text that is, or should
// have been, a URL or NAME=URL: for messages about what cannot be parsed.
func Redact(text string) string {
	at := strings.LastIndexByte(text, '@')
	if at < 0 {
		return text
	}
	before := text[:at]
	start := strings.Index(before, "://")
	if start >= 0 {
		start += len("://")
	} else {
		start = strings.IndexByte(before, '=') + 1
	}
	return before[:start] + "…" + text[at:]
}
