package setup

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/fairway-registry/fairway/internal/fault"
)

const dockerConfig = "etc/docker/daemon.json"

// docker adds the agent to the mirrors of docker.io, the only registry for which
// Docker knows mirrors.
func (p *Plan) docker(o Options) error {
	before, mode, err := p.read(dockerConfig)
	if err != nil {
		return err
	}
	after, err := addMirror(before, "http://"+o.Docker)
	if err != nil {
		return fmt.Errorf("%s: %w", p.where(dockerConfig), err)
	}
	p.change(dockerConfig, before, mode, after)
	if len(p.Changes) > 0 {
		p.note("Have Docker read it: systemctl reload docker.")
	}
	p.note("The agent must listen there: fairway node --docker-listen %s", o.Docker)
	for _, u := range o.Upstreams {
		if u.Name != "docker.io" {
			p.note("Docker knows mirrors of docker.io only: images of %s are pulled from there directly, or as %s/%s/NAME from the agent.", u.Name, o.Listen, strings.ReplaceAll(u.Name, ":", "_"))
		}
	}
	return nil
}

const mirrorsKey = "registry-mirrors"

// addMirror puts a mirror first, and leaves all else in the file byte for byte.
func addMirror(before []byte, mirror string) ([]byte, error) {
	if len(bytes.TrimSpace(before)) == 0 {
		return fmt.Appendf(nil, "{\n  %q: [%q]\n}\n", mirrorsKey, mirror), nil
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(before, &doc); err != nil || doc == nil {
		return nil, fault.New(fault.Conflict, "it is no JSON object that can be read: %v", err)
	}
	value, there := doc[mirrorsKey]
	if !there {
		open := bytes.IndexByte(before, '{') + 1
		end := ","
		if len(doc) == 0 {
			end = "\n"
		}
		return slices.Concat(before[:open], fmt.Appendf(nil, "\n  %q: [%q]%s", mirrorsKey, mirror, end), before[open:]), nil
	}
	var mirrors []string
	if err := json.Unmarshal(value, &mirrors); err != nil {
		return nil, fault.New(fault.Conflict, "%s is no list of texts", mirrorsKey)
	}
	if slices.ContainsFunc(mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == mirror }) {
		return before, nil
	}
	from, to, err := valueOf(before, mirrorsKey)
	if err != nil {
		return nil, err
	}
	list := []byte("[")
	for i, m := range append([]string{mirror}, mirrors...) {
		if i > 0 {
			list = append(list, ", "...)
		}
		list = fmt.Appendf(list, "%q", m)
	}
	return slices.Concat(before[:from], append(list, ']'), before[to:]), nil
}

// valueOf finds where the value of a key of the outermost object is.
func valueOf(content []byte, key string) (from, to int64, err error) {
	dec := json.NewDecoder(bytes.NewReader(content))
	if _, err := dec.Token(); err != nil { // the opening brace
		return 0, 0, fmt.Errorf("read JSON: %w", err)
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return 0, 0, fmt.Errorf("read JSON: %w", err)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return 0, 0, fmt.Errorf("read JSON: %w", err)
		}
		if name == key {
			to := dec.InputOffset()
			return to - int64(len(value)), to, nil
		}
	}
	return 0, 0, fmt.Errorf("read JSON: %q is not there", key)
}
