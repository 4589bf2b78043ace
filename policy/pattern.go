package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// Bounds of a pattern. The engine without backtracking needs none but size;
// the other one gives up after matchTime, and the look-up counts as failed.
const (
	maxPattern = 32 << 10
	maxNesting = 200
	matchTime  = time.Second
)

// pattern is a regular expression of a regexp (POSIX ERE) or pcre table. It is
// translated for Go's linear-time engine; what that can't do (look around, back
// references, atomic groups) goes to a backtracking one. See
// docs/decisions/0003-regular-expressions.md.
type pattern struct {
	src, flags string
	groups     int
	linear     *regexp.Regexp
	backtrack  *regexp2.Regexp
}

// dialect is a language of patterns.
type dialect uint8

const (
	dialectERE  dialect = iota // as glibc's regcomp reads it in the C locale
	dialectPCRE                // as PCRE2, without UTF
)

// Letters of the flags, the defaults of Postfix's tables applied: what is set
// is on.
var patternFlags = [...]string{dialectERE: "imx", dialectPCRE: "imsxAEUX"}

func compilePattern(d dialect, src, flags string) (*pattern, error) {
	if len(src) > maxPattern {
		return nil, fmt.Errorf("pattern of %d octets; the limit is %d", len(src), maxPattern)
	}
	for i := range len(flags) {
		if strings.IndexByte(patternFlags[d], flags[i]) < 0 || strings.IndexByte(flags[:i], flags[i]) >= 0 {
			return nil, fmt.Errorf("flag %q is unknown or given twice", flags[i])
		}
	}
	if d == dialectERE && !strings.Contains(flags, "x") {
		return nil, errors.New("basic regular expressions are not supported; leave the flag x alone")
	}
	p := &pattern{src: src, flags: flags}
	text, groups, irregular, err := translate(d, src, flags, false)
	if err != nil {
		return nil, err
	}
	p.groups = groups
	if !irregular {
		if re, err := regexp.Compile(text); err == nil {
			if d == dialectERE {
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

// scratch is the memory that matching works in.
type scratch struct {
	latin []byte
	runes []rune
}

// subject is what patterns are matched with: octets, each as one character.
func (s *scratch) subject(key []byte) []byte {
	for i, b := range key {
		if b >= 0x80 {
			s.latin = append(s.latin[:0], key[:i]...)
			for _, b := range key[i:] {
				s.latin = appendLatin(s.latin, b)
			}
			return s.latin
		}
	}
	return key
}

func appendLatin(out []byte, b byte) []byte {
	if b < 0x80 {
		return append(out, b)
	}
	return append(out, 0xc0|b>>6, 0x80|b&0x3f)
}

// match reports whether the pattern matches the key. subj is the subject made
// of it.
func (p *pattern) match(s *scratch, key, subj []byte) (bool, error) {
	if p.linear != nil {
		return p.linear.Match(subj), nil
	}
	s.runes = s.runes[:0]
	for _, b := range key {
		s.runes = append(s.runes, rune(b))
	}
	return p.backtrack.MatchRunes(s.runes)
}

// find returns what the groups of a match hold.
func (p *pattern) find(key, subj []byte) ([]string, error) {
	groups := make([]string, p.groups+1)
	if p.linear != nil {
		loc := p.linear.FindSubmatchIndex(subj)
		for i := range groups {
			if 2*i+1 < len(loc) && loc[2*i] >= 0 {
				groups[i] = octets(string(subj[loc[2*i]:loc[2*i+1]]))
			}
		}
		return groups, nil
	}
	runes := make([]rune, 0, len(key))
	for _, b := range key {
		runes = append(runes, rune(b))
	}
	m, err := p.backtrack.FindRunesMatch(runes)
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

// octets undoes subject.
func octets(s string) string {
	if isASCII(s) {
		return s
	}
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}
