package main

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/fairway-registry/fairway/internal/agent"
	"github.com/fairway-registry/fairway/internal/registry"
)

// Beginnings of the names of variables in the environment. Those of a node
// have one of their own, since both may run on one machine, with a directory, a
// quota and a log each.
const (
	envPrefix     = "FAIRWAY_"
	envNodePrefix = envPrefix + "NODE_"
)

// house is a server with settings of its own.
type house[C interface{ Validate() error }] struct {
	prefix   string // of its variables in the environment
	defaults func() C
}

func registryHouse() house[registry.Config] {
	return house[registry.Config]{envPrefix, registry.Default}
}

func nodeHouse() house[agent.Config] { return house[agent.Config]{envNodePrefix, agent.Default} }

// envConfig is the variable that names the configuration file.
func (h house[C]) envConfig() string { return h.prefix + "CONFIG" }

// settings lists all that can be set in cfg, in the order of the struct.
func (h house[C]) settings(cfg *C) []*setting {
	return appendSettings(nil, h.prefix, "", reflect.ValueOf(cfg).Elem())
}

// flags gives flags one for each setting, and one for the file. It returns
// where the file's path will be.
func (h house[C]) flags(flags *pflag.FlagSet) (path *string) { return h.flagsOf(flags) }

// flagsOf gives flags only those for some settings; no keys: all.
func (h house[C]) flagsOf(flags *pflag.FlagSet, keys ...string) (path *string) {
	path = flags.String("config", "", "YAML `FILE` with settings (or $"+h.envConfig()+")")
	scratch := h.defaults()
	for _, s := range h.settings(&scratch) {
		if len(keys) > 0 && !slices.Contains(keys, s.key) {
			continue
		}
		f := flags.VarPF(&flagValue{setting: s}, s.flag(), "", s.doc)
		if s.IsBoolFlag() {
			f.NoOptDefVal = "true"
		}
	}
	return path
}

// environment lists every variable that some command reads.
func environment() []string {
	names := []string{envServer, envNode, registryHouse().envConfig(), nodeHouse().envConfig()}
	r, n := registryHouse().defaults(), nodeHouse().defaults()
	for _, s := range append(registryHouse().settings(&r), nodeHouse().settings(&n)...) {
		names = append(names, s.env())
	}
	return names
}

// flagValue is a setting on the command line, where a list may be given item by
// item.
type flagValue struct {
	*setting
	given bool
}

// Set reads a value from text; a list that was given before grows.
func (v *flagValue) Set(text string) error {
	if v.given && v.isList() {
		text = v.String() + "," + text
	}
	v.given = true
	return v.setting.Set(text)
}

// String is also asked of a zero value, by pflag.
func (v *flagValue) String() string {
	if v.setting == nil {
		return ""
	}
	return v.setting.String()
}

// setting is one value of a Config that can be set.
type setting struct {
	prefix string
	key    string // as in the file: "gc.window"
	doc    string
	arg    string // what help texts call the value
	oneof  []string
	field  reflect.Value // addressable
}

func appendSettings(list []*setting, prefix, section string, v reflect.Value) []*setting {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue // for tests of the package
		}
		key := section + f.Tag.Get("key")
		if f.Type.Kind() == reflect.Struct {
			list = appendSettings(list, prefix, key+".", v.Field(i))
			continue
		}
		list = append(list, &setting{
			prefix: prefix, key: key, doc: f.Tag.Get("doc"), arg: f.Tag.Get("arg"),
			oneof: strings.Fields(f.Tag.Get("oneof")), field: v.Field(i),
		})
	}
	return list
}

// flag is the setting's name on the command line.
func (s *setting) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(s.key) }

// env is the setting's name in the environment.
func (s *setting) env() string {
	return s.prefix + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

// isList reports that the setting takes several values.
func (s *setting) isList() bool { return s.field.Kind() == reflect.Slice }

// Set reads a value from text.
func (s *setting) Set(text string) error {
	if u, ok := s.field.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	text = strings.TrimSpace(text)
	switch s.field.Kind() {
	case reflect.Bool:
		v, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		s.field.SetBool(v)
	case reflect.Int:
		v, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is no whole number", text)
		}
		s.field.SetInt(int64(v))
	case reflect.Float64:
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || v-v != 0 { // infinities and NaN are no rates
			return fmt.Errorf("%q is no number", text)
		}
		s.field.SetFloat(v)
	case reflect.String:
		return s.setString(text)
	default:
		return fmt.Errorf("a %s cannot be set", s.field.Type())
	}
	return nil
}

func (s *setting) setString(text string) error {
	for _, allowed := range s.oneof {
		if text == allowed {
			s.field.SetString(text)
			return nil
		}
	}
	if len(s.oneof) > 0 {
		return fmt.Errorf("%q is none of %s", text, strings.Join(s.oneof, ", "))
	}
	s.field.SetString(text)
	return nil
}

// String renders the value so that Set reads it back.
func (s *setting) String() string {
	if !s.field.IsValid() {
		return "" // pflag asks a zero value for its text
	}
	if m, ok := s.field.Interface().(encoding.TextMarshaler); ok {
		if b, err := m.MarshalText(); err == nil {
			return string(b)
		}
	}
	return fmt.Sprint(s.field.Interface())
}

// Type names the kind of value in help texts.
func (s *setting) Type() string {
	switch {
	case s.arg != "":
		return s.arg
	case len(s.oneof) > 0:
		return strings.Join(s.oneof, "|")
	case s.field.Kind() == reflect.Bool:
		return "bool"
	}
	if t, ok := s.field.Addr().Interface().(interface{ Type() string }); ok {
		return t.Type()
	}
	return s.field.Kind().String()
}

// IsBoolFlag lets pflag accept the bare flag for true.
func (s *setting) IsBoolFlag() bool { return s.field.Kind() == reflect.Bool }
