package main

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/fairway-registry/fairway/internal/registry"
)

// setting is one value of registry.Config that can be set. It is the value of
// its flag as well (pflag.Value).
type setting struct {
	key   string // as in the file: "gc.window"
	doc   string
	arg   string // what help texts call the value
	oneof []string
	field reflect.Value // addressable
}

// settings lists all that can be set in cfg, in the order of the struct.
func settings(cfg *registry.Config) []*setting {
	return appendSettings(nil, "", reflect.ValueOf(cfg).Elem())
}

func appendSettings(list []*setting, prefix string, v reflect.Value) []*setting {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		key := prefix + f.Tag.Get("key")
		if f.Type.Kind() == reflect.Struct {
			list = appendSettings(list, key+".", v.Field(i))
			continue
		}
		list = append(list, &setting{
			key: key, doc: f.Tag.Get("doc"), arg: f.Tag.Get("arg"),
			oneof: strings.Fields(f.Tag.Get("oneof")), field: v.Field(i),
		})
	}
	return list
}

// flag is the setting's name on the command line.
func (s *setting) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(s.key) }

// env is the setting's name in the environment.
func (s *setting) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(s.key, ".", "_"))
}

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
