// Package setting owns what the configurations of both houses have in common:
// lists, addresses, the settings of the log, and the error that names a setting
// which cannot be used.
//
// It refuses to know where a value came from: flags, environment and files are
// read in cmd alone.
package setting

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Error is a value that a house cannot be started with.
type Error struct {
	Key    string // as in the tags of its Config
	Reason string // a sentence for the person who set it
}

func (e *Error) Error() string { return e.Key + ": " + e.Reason }

// Errorf returns an *Error about the setting key.
func Errorf(key, format string, args ...any) *Error {
	return &Error{Key: key, Reason: fmt.Sprintf(format, args...)}
}

// Log is the logging part of a Config.
type Log struct {
	Format   string `key:"format" oneof:"auto text json" doc:"auto is text on a terminal and JSON otherwise."`
	Level    string `key:"level" oneof:"debug info warn error" doc:"The least serious messages to log."`
	Requests string `key:"requests" oneof:"none errors writes all" doc:"Requests to log: none, failed ones, also those that change something, or all."`
}

// DefaultLog logs for whoever looks, and requests that change something.
func DefaultLog() Log { return Log{Format: "auto", Level: "info", Requests: "writes"} }

// List is a comma-separated list of texts.
type List []string

// String joins the texts with commas.
func (l List) String() string { return strings.Join(l, ",") }

// MarshalText renders l as String does.
func (l List) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads texts separated by commas; empty ones count for nothing.
func (l *List) UnmarshalText(b []byte) error {
	*l = nil
	for text := range strings.SplitSeq(string(b), ",") {
		if text = strings.TrimSpace(text); text != "" {
			*l = append(*l, text)
		}
	}
	return nil
}

// HostList is a comma-separated list of host names.
type HostList []string

// String joins the names with commas.
func (l HostList) String() string { return strings.Join(l, ",") }

// UnmarshalText reads names separated by commas.
func (l *HostList) UnmarshalText(b []byte) error {
	*l = nil
	for name := range strings.SplitSeq(string(b), ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if strings.ContainsAny(name, "/:@ ") {
			return fmt.Errorf("%q is no host name; give names without scheme and port", name)
		}
		*l = append(*l, strings.ToLower(name))
	}
	return nil
}

// OriginList is a list of web origins, or "*".
type OriginList []string

// String joins the origins with commas.
func (l OriginList) String() string { return strings.Join(l, ",") }

// UnmarshalText reads origins separated by commas.
func (l *OriginList) UnmarshalText(b []byte) error {
	*l = nil
	for origin := range strings.SplitSeq(string(b), ",") {
		if origin = strings.ToLower(strings.TrimSpace(origin)); origin == "" {
			continue
		}
		u, err := url.Parse(origin)
		if origin != "*" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Scheme+"://"+u.Host != origin) {
			return fmt.Errorf("%q is not an origin; want https://HOST[:PORT] without a path, or *", origin)
		}
		*l = append(*l, origin)
	}
	return nil
}

// Listen checks an address to listen on. example is one for the person who
// got it wrong.
func Listen(key, address, example string) (host string, err error) {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil {
		return "", Errorf(key, "%q is no address; want HOST:PORT, for example %s", address, example)
	}
	return host, nil
}

// IsLoopback reports whether host can be reached from this machine only. A
// name other than localhost may resolve to anything and so is not.
func IsLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
