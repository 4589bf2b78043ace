package postfix

import (
	"fmt"
	"strings"
)

// piece is literal text or, with a hole, what db_common of Postfix puts in its
// place: 's' the key, 'u' its local-part, 'd' its domain, '1' to '9' the
// domain's labels from the right.
type piece struct {
	text string
	hole byte
}

// cutPieces cuts a query's template: %S, %U and %D mean the same as the small
// letters there.
func cutPieces(s string) (all []piece, err error) {
	lit := func(t string) {
		if n := len(all); n > 0 && all[n-1].hole == 0 {
			all[n-1].text += t
		} else {
			all = append(all, piece{text: t})
		}
	}
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 == len(s) {
			lit(s[i : i+1])
			continue
		}
		i++
		switch c := s[i]; {
		case c == '%':
			lit("%")
		case strings.IndexByte("sudSUD", c) >= 0:
			all = append(all, piece{hole: c | 0x20})
		case c >= '1' && c <= '9':
			all = append(all, piece{hole: c})
		default:
			return nil, fmt.Errorf("placeholder %%%c", c)
		}
	}
	return all, nil
}

// lookup is a key and its parts.
type lookup struct {
	key, user, domain string
	labels            []string
}

// lookup cuts a key, and says whether it has what the table needs.
func (t template) lookup(key string) (lookup, bool) {
	user, domain, labels, ok := t.parts(key)
	return lookup{key, user, domain, labels}, ok
}

// part is what stands in a hole.
func (l lookup) part(hole byte) string {
	switch hole {
	case 's':
		return l.key
	case 'u':
		return l.user
	case 'd':
		return l.domain
	}
	return l.labels[len(l.labels)-int(hole-'0')]
}

// fill puts the key into a template, each part by way of quote.
func (l lookup) fill(template []piece, quote func(string) string) string {
	var b strings.Builder
	for _, p := range template {
		if p.hole == 0 {
			b.WriteString(p.text)
		} else {
			b.WriteString(quote(l.part(p.hole)))
		}
	}
	return b.String()
}
