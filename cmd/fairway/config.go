package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	houses "github.com/fairway-registry/fairway/internal/setting"
)

// Variables that commands read which ask a server or a node.
const (
	envServer = envPrefix + "SERVER"
	envNode   = envPrefix + "NODE"
)

// value is the text of a setting with where it was found.
type value struct {
	text  string
	where string // "fairway.yaml:3", "FAIRWAY_DATA", "--data"
}

// layer maps the keys that one source sets to their values.
type layer map[string]value

// load merges the sources of configuration: flags over environment over file
// over defaults. A wrong value is an error that names its source even where a
// stronger source overrides it. warn is called for a FAIRWAY_ variable that no
// command reads.
func (h house[C]) load(path string, environ []string, flags *pflag.FlagSet, warn func(string)) (C, error) {
	cfg := h.defaults()
	known := h.settings(&cfg)
	var layers []layer
	if path != "" {
		content, err := os.ReadFile(path)
		if err != nil {
			return cfg, usagef("cannot read the configuration file: %w", err)
		}
		l, err := parseFile(path, content, known)
		if err != nil {
			return cfg, err
		}
		layers = append(layers, l)
	}
	layers = append(layers, fromEnvironment(environ, known, warn), fromFlags(flags, known))
	where := layer{}
	for _, l := range layers {
		for _, s := range known {
			v, ok := l[s.key]
			if !ok {
				continue
			}
			if err := s.Set(v.text); err != nil {
				return cfg, usagef("%s: %s: %w", v.where, s.key, err)
			}
			where[s.key] = v
		}
	}
	return cfg, located(cfg.Validate(), where)
}

// located adds to an error about a setting where its value came from.
func located(err error, where layer) error {
	var bad *houses.Error
	if !errors.As(err, &bad) {
		return err
	}
	if v, ok := where[bad.Key]; ok {
		return usagef("%s: %w", v.where, err)
	}
	return usagef("%w", err)
}

func fromEnvironment(environ []string, known []*setting, warn func(string)) layer {
	l := layer{}
	names := environment()
	keys := map[string]string{}
	for _, s := range known {
		keys[s.env()] = s.key
	}
	for _, entry := range environ {
		name, text, _ := strings.Cut(entry, "=")
		if key, ok := keys[name]; ok {
			l[key] = value{text, name}
		} else if strings.HasPrefix(name, envPrefix) && !slices.Contains(names, name) {
			warn("nothing reads the environment variable " + name + didYouMean(name, names))
		}
	}
	return l
}

func fromFlags(flags *pflag.FlagSet, known []*setting) layer {
	l := layer{}
	for _, s := range known {
		if f := flags.Lookup(s.flag()); f != nil && f.Changed {
			l[s.key] = value{f.Value.String(), "--" + s.flag()}
		}
	}
	return l
}

// parseFile reads a YAML document into a layer. It goes by the nodes and not
// by decoded values, so that an error has its line and every scalar its text
// as written.
func parseFile(name string, content []byte, known []*setting) (layer, error) {
	dec := yaml.NewDecoder(strings.NewReader(string(content)))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return layer{}, nil
	case err != nil:
		return nil, usagef("%s: %w", name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, usagef("%s: one YAML document is wanted, there are more", name)
	}
	p := fileParser{name: name, known: known, found: layer{}}
	if root := doc.Content[0]; !isNull(root) {
		if err := p.mapping("", root); err != nil {
			return nil, err
		}
	}
	return p.found, nil
}

type fileParser struct {
	name  string
	known []*setting
	found layer
}

func (p *fileParser) errorf(n *yaml.Node, format string, args ...any) error {
	return usagef("%s:%d: %w", p.name, n.Line, fmt.Errorf(format, args...))
}

func (p *fileParser) mapping(prefix string, n *yaml.Node) error {
	n = resolved(n)
	if n.Kind != yaml.MappingNode {
		return p.errorf(n, "%q wants settings below it, as in %q", orDocument(prefix), p.example(prefix))
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		keyNode, v := n.Content[i], resolved(n.Content[i+1])
		key := prefix + keyNode.Value
		section := slices.ContainsFunc(p.known, func(s *setting) bool { return strings.HasPrefix(s.key, key+".") })
		at := slices.IndexFunc(p.known, func(s *setting) bool { return s.key == key })
		var err error
		switch {
		case section && isNull(v):
		case section:
			err = p.mapping(key+".", v)
		case at >= 0:
			err = p.value(p.known[at], keyNode, v)
		default:
			err = p.errorf(keyNode, "there is no setting %q%s", key, didYouMean(key, p.keys()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *fileParser) value(s *setting, at, v *yaml.Node) error {
	key := s.key
	if first, twice := p.found[key]; twice {
		return p.errorf(at, "%q is set twice, first at %s", key, first.where)
	}
	where := fmt.Sprintf("%s:%d", p.name, at.Line)
	switch {
	case isNull(v):
		return p.errorf(at, "%q has no value", key)
	case v.Kind == yaml.ScalarNode:
		p.found[key] = value{v.Value, where}
	case v.Kind == yaml.SequenceNode && s.isList():
		var items []string
		for _, item := range v.Content {
			if item = resolved(item); item.Kind != yaml.ScalarNode {
				return p.errorf(item, "%q wants plain values in its list", key)
			}
			items = append(items, item.Value)
		}
		p.found[key] = value{strings.Join(items, ","), where}
	default:
		return p.errorf(at, "%q wants a single value", key)
	}
	return nil
}

func (p *fileParser) keys() []string {
	var keys []string
	for _, s := range p.known {
		keys = append(keys, s.key)
	}
	return keys
}

// example is the first setting in a section, as it would be written.
func (p *fileParser) example(prefix string) string {
	for _, s := range p.known {
		if rest, ok := strings.CutPrefix(s.key, prefix); ok {
			return rest + ": " + s.String()
		}
	}
	return ""
}

func orDocument(prefix string) string {
	if prefix == "" {
		return "the file"
	}
	return strings.TrimSuffix(prefix, ".")
}

func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
