package report

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

// refused is an answer that says no.
type refused struct {
	status        int
	code, message string
}

func (e *refused) Error() string {
	return fmt.Sprintf("the registry answered %d: %s", e.status, e.message)
}

// answerMax bounds what is read of an answer, in bytes.
const answerMax = 1 << 20

// put sends a report.
func (r *Reporter) put(ctx context.Context, report nodeapi.Report) (nodeapi.Accepted, error) {
	body, err := json.Marshal(report)
	if err != nil {
		return nodeapi.Accepted{}, fmt.Errorf("encode the report: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	target := strings.TrimSuffix(r.o.Registry, "/") + "/api/v1/nodes/" + url.PathEscape(report.Node)
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, target, bytes.NewReader(body))
	if err != nil {
		return nodeapi.Accepted{}, fmt.Errorf("make the request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := r.o.HTTP.Do(req)
	if err != nil {
		return nodeapi.Accepted{}, fmt.Errorf("send the report: %w", plain(err))
	}
	defer func() { _ = res.Body.Close() }() // nothing is lost by a failed close of what was read
	content, err := io.ReadAll(io.LimitReader(res.Body, answerMax))
	if err != nil {
		return nodeapi.Accepted{}, fmt.Errorf("read the answer: %w", err)
	}
	return readAnswer(res.StatusCode, content)
}

func readAnswer(status int, content []byte) (a nodeapi.Accepted, err error) {
	if status == http.StatusOK {
		if err := json.Unmarshal(content, &a); err != nil || a.Node == "" {
			return a, &refused{status, "", "not as a Fairway registry does; does something else listen there?"}
		}
		return a, nil
	}
	var e struct {
		Error struct{ Code, Message string } `json:"error"`
	}
	if json.Unmarshal(content, &e) != nil || e.Error.Message == "" {
		e.Error.Message = "it does not take reports; is it a Fairway registry of this version?"
	}
	return a, &refused{status, e.Error.Code, e.Error.Message}
}

// plain leaves out the URL, which everybody knows.
func plain(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
