package jsonface

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
	"github.com/fairway-registry/fairway/internal/unit"
)

// bodyMax bounds a request's body, in bytes.
const bodyMax = 1 << 20

// Decode reads the request's JSON into the struct that into points to. No body
// is an empty object. Errors name the field and what is wanted.
func (c *Call) Decode(into any) error {
	content, err := c.Content(bodyMax)
	if err != nil {
		return err
	}
	return Decode(content, into)
}

// Content reads the request's body, which must be declared as JSON and may have
// most bytes.
func (c *Call) Content(most int64) ([]byte, error) {
	content, err := io.ReadAll(http.MaxBytesReader(c.writer, c.Body, most))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, Refuse(http.StatusRequestEntityTooLarge, "BODY_TOO_LARGE", "the body is larger than %s", unit.Size(most))
	case err != nil:
		return nil, fault.Wrap(fault.Invalid, err, "the body ended before it was complete")
	}
	return content, jsonDeclared(c.Header, len(content) > 0)
}

// jsonDeclared demands the one Content-Type that a web page cannot send to
// another origin without asking first.
func jsonDeclared(h http.Header, body bool) error {
	declared := h.Get("Content-Type")
	if declared == "" && !body {
		return nil
	}
	if mt, _, err := mime.ParseMediaType(declared); err != nil || mt != "application/json" {
		return Refuse(http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE", "the body must be sent with Content-Type: application/json, not %q", declared)
	}
	return nil
}

// Decode reads the JSON object in content into the struct that into points to,
// strictly: each member must be a known field, of its type, once.
func Decode(content []byte, into any) error {
	if len(bytes.TrimSpace(content)) == 0 {
		return nil
	}
	raw, err := members(content)
	if err != nil {
		return err
	}
	v := reflect.ValueOf(into).Elem()
	fields := map[string][]int{}
	var known []string
	for _, f := range reflect.VisibleFields(v.Type()) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			fields[name] = f.Index
			known = append(known, name)
		}
	}
	names := make([]string, 0, len(raw))
	for name := range raw {
		names = append(names, name)
	}
	slices.Sort(names) // the same error for the same body
	for _, name := range names {
		index, ok := fields[name]
		if !ok {
			return fault.New(fault.Invalid, "%s: there is no such field; there are %s", Clip(name), strings.Join(known, ", "))
		}
		if err := decodeField(name, raw[name], v.FieldByIndex(index)); err != nil {
			return err
		}
	}
	return nil
}

// members are those of the JSON object in content. A name that occurs twice is
// refused, since readers differ in which of the values counts.
func members(content []byte) (map[string]json.RawMessage, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(content, &raw); err != nil || raw == nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, fault.New(fault.Invalid, "the body is no JSON: %v at byte %d", syntax, syntax.Offset)
		}
		return nil, fault.New(fault.Invalid, "the body must be a JSON object")
	}
	seen := map[string]bool{}
	dec := json.NewDecoder(bytes.NewReader(content))
	if _, err := dec.Token(); err != nil { // the opening brace
		return nil, fault.Wrap(fault.Invalid, err, "the body is no JSON")
	}
	for dec.More() {
		token, err := dec.Token()
		var value json.RawMessage
		if err == nil {
			err = dec.Decode(&value)
		}
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "the body is no JSON")
		}
		name, _ := token.(string) // in an object every other token is a name
		if seen[name] {
			return nil, fault.New(fault.Invalid, "%s: it is given more than once", Clip(name))
		}
		seen[name] = true
	}
	return raw, nil
}

func decodeField(name string, raw json.RawMessage, field reflect.Value) error {
	if string(raw) == "null" {
		return fault.New(fault.Invalid, "%s: it is null; leave the field out instead", name)
	}
	err := json.Unmarshal(raw, field.Addr().Interface())
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType):
		return fault.New(fault.Invalid, "%s: %s is wanted, not %s", name, wanted(field.Type()), Clip(string(raw)))
	case err != nil:
		return fault.New(fault.Invalid, "%s: %s", name, err)
	}
	return nil
}

func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return wanted(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Slice:
		return "a list of texts"
	}
	return "a number"
}

// Clip keeps a text that came from outside from filling an error message.
func Clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// Query reads the parameters of a request and remembers the first mistake.
type Query struct {
	Err    error
	values url.Values
}

// Query allows the parameters named and no others: a misspelled filter must
// not look like an answer without one.
func (c *Call) Query(allowed ...string) *Query {
	values, err := url.ParseQuery(c.URL.RawQuery)
	q := &Query{values: values}
	if err != nil {
		q.Err = fault.New(fault.Invalid, "the query of the URL is malformed")
	}
	for name, given := range values {
		if !slices.Contains(allowed, name) {
			q.Failf("%s: there is no such parameter; there are: %s", Clip(name), strings.Join(allowed, ", "))
		} else if len(given) > 1 {
			q.Failf("%s: it is given more than once", name)
		}
	}
	return q
}

// Failf notes a mistake, unless there was one before.
func (q *Query) Failf(format string, args ...any) {
	if q.Err == nil {
		q.Err = fault.New(fault.Invalid, format, args...)
	}
}

// Text reads a text, "" if it is not given.
func (q *Query) Text(name string) string { return q.values.Get(name) }

// ID reads the id of something, 0 if it is not given.
func (q *Query) ID(name string) int64 {
	if !q.values.Has(name) {
		return 0
	}
	n, err := strconv.ParseInt(q.values.Get(name), 10, 64)
	if err != nil || n < 1 {
		q.Failf("%s: a number of 1 or more is wanted, not %q", name, Clip(q.values.Get(name)))
	}
	return n
}

// N reads how many items are wanted.
func (q *Query) N(standard, most int) int {
	if !q.values.Has("n") {
		return standard
	}
	n, err := strconv.Atoi(q.values.Get("n"))
	if err != nil || n < 1 || n > most {
		q.Failf("n: a number from 1 to %d is wanted, not %q", most, Clip(q.values.Get("n")))
	}
	return n
}

// Duration reads a duration, 0 if it is not given.
func (q *Query) Duration(name string) unit.Duration {
	if !q.values.Has(name) {
		return 0
	}
	d, err := unit.ParseDuration(q.values.Get(name))
	if err != nil {
		q.Failf("%s: %v", name, err)
	}
	return d
}

// ID reads the id in the path.
func (c *Call) ID() (int64, error) {
	id, err := strconv.ParseInt(c.PathValue("id"), 10, 64)
	if err != nil || id < 1 {
		return 0, fault.New(fault.Invalid, "id: a number of 1 or more is wanted, not %q", Clip(c.PathValue("id")))
	}
	return id, nil
}

// NoBody refuses a body where none has a meaning.
func (c *Call) NoBody() error {
	var nothing struct{}
	if err := c.Decode(&nothing); err != nil {
		return fmt.Errorf("read no body: %w", err)
	}
	return nil
}
