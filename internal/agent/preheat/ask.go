package preheat

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
	"time"

	"github.com/fairway-registry/fairway/internal/nodeapi"
)

var (
	// errGone says that the registry has no such task, or holds it for over.
	errGone = errors.New("the registry does not want it any more")
	// errRefused says that the registry will never take what was sent.
	errRefused = errors.New("the registry refuses it")
)

const (
	answerMax  = 1 << 20 // bytes that are read of an answer
	answerTime = 10 * time.Second
)

// next waits for a task.
func (p *Preheater) next(ctx context.Context) (t nodeapi.Task, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.o.Wait+answerTime)
	defer cancel()
	var list nodeapi.TaskList
	err = p.call(ctx, http.MethodGet, "tasks?wait="+p.o.Wait.String(), nil, &list)
	if err != nil || len(list.Tasks) == 0 {
		return t, false, err
	}
	return list.Tasks[0], true, nil
}

// put says how far a task is.
func (p *Preheater) put(ctx context.Context, t nodeapi.Task, now nodeapi.Progress) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return p.call(ctx, http.MethodPut, fmt.Sprintf("tasks/%d", t.ID), now, nil)
}

func (p *Preheater) call(ctx context.Context, method, rest string, in, out any) error {
	var body io.Reader
	if in != nil {
		content, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(content)
	}
	target := strings.TrimSuffix(p.o.Registry, "/") + "/api/v1/nodes/" + url.PathEscape(p.o.Node()) + "/" + rest
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return fmt.Errorf("make the request: %w", err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := p.o.HTTP.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // everybody knows the URL
		}
		return fmt.Errorf("ask the registry: %w", err)
	}
	defer func() { _ = res.Body.Close() }() // nothing is lost by a failed close of what was read
	content, err := io.ReadAll(io.LimitReader(res.Body, answerMax))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return answered(res.StatusCode, content, out)
}

func answered(status int, content []byte, out any) error {
	switch {
	case status == http.StatusNotFound && out == nil, status == http.StatusConflict:
		return errGone
	case status == http.StatusBadRequest:
		return fmt.Errorf("%w: it answers %d", errRefused, status)
	case status >= http.StatusMultipleChoices:
		return fmt.Errorf("the registry answers %d", status)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(content, out); err != nil {
		return fmt.Errorf("the registry does not answer as Fairway does: %w", err)
	}
	return nil
}
