package config

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/understudy-mx/understudy/internal/locate"
)

// setDefault sets the setting's field of c to its default, if it has one. A
// default that can't be read is a broken table, which a test would notice.
func (s *setting) setDefault(c *Config) {
	if s.compute != nil {
		*s.field(c).(*string) = s.compute()
		return
	}
	if s.def == "" {
		return
	}
	var v struct{ V any }
	err := toml.Unmarshal([]byte("v = "+s.def), &v)
	if err == nil {
		err = s.kind.parse(v.V, s.field(c))
	}
	if err != nil {
		panic(fmt.Sprintf("config: default of %s: %v", locate.Join(s.section, s.name), err))
	}
}

// Print writes c as a configuration file. With onlyDiffs it leaves out defaults
// and explanations.
func Print(w io.Writer, c *Config, onlyDiffs bool) error {
	p := &printer{w: bufio.NewWriter(w), def: Default(), onlyDiffs: onlyDiffs}
	p.section("", c)
	for _, name := range sections() {
		if name == "route" {
			for _, rt := range c.Routes {
				p.route(rt)
			}
			continue
		}
		if name == "filter" {
			for _, f := range c.Filters {
				p.keys("[[filter]]", name, name, &Config{Filters: []Filter{f}}, &Config{Filters: make([]Filter, 1)})
			}
			continue
		}
		if name == "source" {
			for _, src := range c.Sources {
				p.keys("[[source]]", name, name, &Config{Sources: []Source{src}}, &Config{Sources: make([]Source, 1)})
			}
			continue
		}
		if (name == "publish") != c.IsPublisher && slices.Contains([]string{"smtp", "primary", "sync", "queue", "publish", "web", "notify"}, name) {
			continue // of the other daemon
		}
		p.section(name, c)
	}
	return p.w.Flush()
}

type printer struct {
	w         *bufio.Writer
	def       *Config
	onlyDiffs bool
	printed   bool
}

func (p *printer) section(name string, c *Config) {
	header := ""
	if name != "" {
		header = "[" + name + "]"
	}
	p.keys(header, name, name, c, p.def)
}

func (p *printer) route(rt Route) {
	c := &Config{Primary: rt.Primary, Routes: []Route{rt}}
	def := &Config{Primary: p.def.Primary, Routes: make([]Route, 1)}
	p.keys("[[route]]", "route", "route", c, def)
	p.keys("", "primary", "route", c, def)
}

// keys writes one section's keys, below its header if there is any to write.
func (p *printer) keys(header, section, doc string, c, def *Config) {
	for _, s := range settings {
		if s.section != section {
			continue
		}
		value, plain := literal(s.field(c)), literal(s.field(def))
		if p.onlyDiffs && value == plain {
			continue
		}
		if header != "" {
			p.header(header, doc)
			header = ""
		}
		if !p.onlyDiffs && doc == section {
			p.comment(s.doc)
		}
		off := ""
		if value == plain && reflect.ValueOf(s.field(c)).Elem().IsZero() && s.def == "" {
			off = "#" // a key that has no default and is not set
		}
		fmt.Fprintf(p.w, "%s%s = %s\n", off, s.name, value)
		p.printed = true
	}
}

func (p *printer) header(header, doc string) {
	if p.printed {
		fmt.Fprintln(p.w)
	}
	if !p.onlyDiffs && doc != "" {
		p.comment(sectionDoc[doc])
	}
	fmt.Fprintln(p.w, header)
}

// comment wraps text at 78 columns.
func (p *printer) comment(text string) {
	line := "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > 78 && line != "#" {
			fmt.Fprintln(p.w, line)
			line = "#"
		}
		line += " " + word
	}
	fmt.Fprintln(p.w, line)
}

// literal spells the value behind a setting's pointer as TOML.
func literal(ptr any) string {
	switch v := ptr.(type) {
	case *string:
		return quote(*v)
	case *int:
		return strconv.Itoa(*v)
	case *bool:
		return strconv.FormatBool(*v)
	case *Size:
		return quote(v.String())
	case *time.Duration:
		return quote(formatDuration(*v))
	case *[]string:
		return "[" + joinAll(*v, quote) + "]"
	case *[]netip.Prefix:
		return "[" + joinAll(*v, func(p netip.Prefix) string { return quote(p.String()) }) + "]"
	}
	panic(fmt.Sprintf("config: no literal for %T", ptr))
}

func joinAll[T any](list []T, f func(T) string) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = f(v)
	}
	return strings.Join(out, ", ")
}

// quote writes a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
