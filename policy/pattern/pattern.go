// Package pattern matches octets with the regular expressions of Postfix's
// regexp and pcre tables, as Postfix would.
//
// A rule such as
//
//	/^(dhcp|dial)-?\d+\.isp\.example$/i
//
// means one thing to PCRE and another to glibc's regcomp, for which \d is the
// letter d: a regexp table finds dhcp-d.isp.example with it, a pcre table
// dhcp-7.isp.example. Go's regexp differs from both: it reads UTF-8, and its
// \s lacks the vertical tab. Compile therefore translates: it writes classes of
// octets out, so that an engine's own idea of case, words and space doesn't count.
// The result runs on Go's linear-time engine. Patterns beyond it (look-around, back
// references, atomic groups) run on a backtracking one, which gives up after a
// second. See docs/decisions/0003-regular-expressions.md.
//
// A pattern that can't be matched as Postfix matches it is an error of Compile,
// never a pattern that matches something else.
package pattern

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// Bounds of a pattern. The engine without backtracking needs none but size;
// the other one gives up after matchTime, and the look-up counts as failed.
const (
	MaxLen     = 32 << 10 // octets of a pattern; it has fewer groups
	maxNesting = 200
	matchTime  = time.Second
)

// Pattern is a compiled regular expression. It is safe for concurrent use.
type Pattern struct {
	src, flags string
	groups     int
	linear     *regexp.Regexp
	backtrack  *regexp2.Regexp
}

// String spells the pattern as Compile took it: /source/flags.
func (p *Pattern) String() string { return "/" + p.src + "/" + p.flags }

// Groups is the number of its capturing groups.
func (p *Pattern) Groups() int { return p.groups }

// Dialect is a language of patterns.
type Dialect uint8

const (
	ERE  Dialect = iota // as glibc's regcomp reads it in the C locale
	PCRE                // as PCRE2, without UTF
)

// Letters of the flags, the defaults of Postfix's tables applied: what is set
// is on.
var letters = [...]string{ERE: "imx", PCRE: "imsxAEUX"}

// Compile reads a pattern. The flags are those in force, letters of "imx" for
// ERE and of "imsxAEUX" for PCRE, not changes of a table's defaults.
func Compile(d Dialect, src, flags string) (*Pattern, error) {
	if len(src) > MaxLen {
		return nil, fmt.Errorf("pattern of %d octets; the limit is %d", len(src), MaxLen)
	}
	for i := range len(flags) {
		if strings.IndexByte(letters[d], flags[i]) < 0 || strings.IndexByte(flags[:i], flags[i]) >= 0 {
			return nil, fmt.Errorf("flag %q is unknown or given twice", flags[i])
		}
	}
	if d == ERE && !strings.Contains(flags, "x") {
		return nil, errors.New("basic regular expressions are not supported; leave the flag x alone")
	}
	p := &Pattern{src: src, flags: flags}
	text, groups, irregular, err := translate(d, src, flags, false)
	if err != nil {
		return nil, err
	}
	p.groups = groups
	if !irregular {
		if re, err := regexp.Compile(text); err == nil {
			if d == ERE {
				re.Longest()
			}
			p.linear = re
			return p, nil
		}
	}
	// Irregular, or repeated more often than the linear engine allows.
	if text, _, _, err = translate(d, src, flags, true); err != nil {
		return nil, err
	}
	re, err := regexp2.Compile(text, regexp2.None)
	if err != nil {
		return nil, errors.New("the engine doesn't take it")
	}
	re.MatchTimeout = matchTime
	p.backtrack = re
	return p, nil
}

// Subject is what patterns are matched with. One that is set again and again
// keeps its memory. It is for one goroutine.
type Subject struct {
	key   []byte
	latin []byte // the key, each octet as a character, where that differs from it
	runes []rune
	buf   []byte
}

// Set takes the octets to match. They must not change while s is in use.
func (s *Subject) Set(key []byte) {
	s.key, s.latin, s.runes = key, key, s.runes[:0]
	for i, b := range key {
		if b < utf8.RuneSelf {
			continue
		}
		s.buf = append(s.buf[:0], key[:i]...)
		for _, b := range key[i:] {
			s.buf = utf8.AppendRune(s.buf, rune(b))
		}
		s.latin = s.buf
		return
	}
}

// characters is the key as the backtracking engine wants it.
func (s *Subject) characters() []rune {
	if len(s.runes) == 0 {
		for _, b := range s.key {
			s.runes = append(s.runes, rune(b))
		}
	}
	return s.runes
}

// Match reports whether the pattern matches. An error says that the
// backtracking engine gave up.
func (p *Pattern) Match(s *Subject) (bool, error) {
	if p.linear != nil {
		return p.linear.Match(s.latin), nil
	}
	return p.backtrack.MatchRunes(s.characters())
}

// Find returns what matches, as group 0, and what its groups hold.
func (p *Pattern) Find(s *Subject) ([]string, error) {
	groups := make([]string, p.groups+1)
	if p.linear != nil {
		loc := p.linear.FindSubmatchIndex(s.latin)
		for i := range groups {
			if 2*i+1 < len(loc) && loc[2*i] >= 0 {
				groups[i] = octets(string(s.latin[loc[2*i]:loc[2*i+1]]))
			}
		}
		return groups, nil
	}
	m, err := p.backtrack.FindRunesMatch(s.characters())
	for i := range groups {
		if err != nil || m == nil {
			break
		}
		if g := m.GroupByNumber(i); g != nil && len(g.Captures) > 0 {
			groups[i] = octets(g.String())
		}
	}
	return groups, err
}

// octets turns characters back into octets.
func octets(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}
