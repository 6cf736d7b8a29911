// Package fault owns the kinds of error that cross package borders and the
// text of them that a client may read.
//
// Every other package wraps errors with %w and an operation; only a *Error
// made here carries public text, and only its Public text may leave the
// process. An error without a *Error in its chain is Internal: a face answers
// it with a general sentence and logs the rest.
package fault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind says what went wrong in terms a face can turn into a status code.
// Kinds are errors, so errors.Is(err, fault.NotFound) asks for a kind.
type Kind string

// Error makes a Kind usable as a target of errors.Is.
func (k Kind) Error() string { return string(k) }

const (
	NotFound Kind = "not found"          // the thing named does not exist, or not for this caller
	Conflict Kind = "conflict"           // the state of the thing forbids the act
	Invalid  Kind = "invalid"            // the request itself is wrong
	Denied   Kind = "denied"             // the caller may not do this
	Busy     Kind = "busy"               // try again later
	Full     Kind = "insufficient space" // the disk or a quota is full
	Internal Kind = "internal"           // our fault; details only in the log
)

// Error is an error with a kind, a machine-readable code and a public text.
type Error struct {
	Kind   Kind
	Code   string // an OCI error code such as BLOB_UNKNOWN; "" lets the face choose by kind
	Public string // one sentence for the person at the other end
	Detail any    // optional, marshalled as the spec's "detail"
	Err    error  // the cause, for the log only
}

// Error renders the public text and the cause; it is for logs.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Public + ": " + e.Err.Error()
	}
	return e.Public
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is this error's kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// valueMax is how many bytes of a text a message repeats at most: a digest, and not a
// value that a client has sent to fill logs and terminals.
const valueMax = 140

// cut shortens what a message repeats of texts.
func cut(args []any) []any {
	args = slices.Clone(args)
	for i, a := range args {
		if s, ok := a.(string); ok && len(s) > valueMax {
			args[i] = strings.ToValidUTF8(s[:valueMax], "") + "…"
		}
	}
	return args
}

// New returns an error of kind k whose formatted text is public; of long texts among
// args it has the beginning. A %w operand becomes the cause and is rendered into the public text as well, so wrap only
// errors whose text a client may read.
func New(k Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, cut(args)...)
	return &Error{Kind: k, Public: err.Error(), Err: errors.Unwrap(err)}
}

// WithCode sets the code and returns e.
func (e *Error) WithCode(code string) *Error { e.Code = code; return e }

// WithDetail sets the detail and returns e.
func (e *Error) WithDetail(detail any) *Error { e.Detail = detail; return e }

// Wrap returns an error of kind k with the given public text and a cause that
// stays private.
func Wrap(k Kind, err error, public string) *Error {
	return &Error{Kind: k, Public: public, Err: err}
}

// KindOf returns the kind of err, Internal where none is in its chain.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Public returns the error that may be shown to a client: the *Error in err's
// chain, or a general Internal one.
func Public(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Kind: Internal, Public: "internal error; the server's log has the details under this request's id", Err: err}
}
