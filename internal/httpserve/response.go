package httpserve

import (
	"io"
	"net/http"
)

// response is the ResponseWriter that handlers see. It is pooled: nothing may
// hold it after the handler has returned.
type response struct {
	http.ResponseWriter
	route   *Route
	body    *body
	err     error
	fail    func(http.ResponseWriter, error) // answers a panic
	id      string
	status  int   // 0 until the header is written
	written int64 // bytes of the body
}

func (w *response) reset(inner http.ResponseWriter, route *Route) {
	*w = response{ResponseWriter: inner, route: route}
}

// WriteHeader notes the first final status.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	w.implicitOK()
	n, err := w.ResponseWriter.Write(p)
	w.written += int64(n)
	return n, err
}

// WriteString spares the copy that io.WriteString would make.
func (w *response) WriteString(s string) (int, error) {
	w.implicitOK()
	n, err := io.WriteString(w.ResponseWriter, s)
	w.written += int64(n)
	return n, err
}

// ReadFrom hands src to the connection, which sends a file without a copy.
func (w *response) ReadFrom(src io.Reader) (int64, error) {
	w.implicitOK()
	n, err := io.Copy(w.ResponseWriter, src) // uses the inner ReaderFrom where there is one
	w.written += n
	return n, err
}

func (w *response) implicitOK() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

// Flush sends what is buffered.
func (w *response) Flush() {
	w.implicitOK()
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
