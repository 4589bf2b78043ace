package pattern

import "fmt"

// charset is a set of octets. The patterns of Postfix's tables match octets:
// neither regexp nor pcre tables are asked to read UTF-8.
type charset [4]uint64

func (c *charset) add(lo, hi byte) {
	for i := int(lo); i <= int(hi); i++ {
		c[i>>6] |= 1 << (i & 63)
	}
}

func (c *charset) has(b byte) bool { return c[b>>6]&(1<<(b&63)) != 0 }

func (c *charset) union(d charset) {
	for i := range c {
		c[i] |= d[i]
	}
}

func (c charset) not() charset {
	for i := range c {
		c[i] = ^c[i]
	}
	return c
}

// foldCase adds the other case of each letter.
func (c *charset) foldCase() {
	for b := byte('a'); b <= 'z'; b++ {
		if up := b - 'a' + 'A'; c.has(b) || c.has(up) {
			c.add(b, b)
			c.add(up, up)
		}
	}
}

// write spells the set as a class that both engines read alike.
func (c charset) write(out []byte) []byte {
	switch c {
	case charset{}:
		return append(out, `[^\x00-\xff]`...)
	case charset{}.not():
		return append(out, `[\x00-\xff]`...)
	}
	out = append(out, '[')
	for i := 0; i < 256; i++ {
		if !c.has(byte(i)) {
			continue
		}
		lo := i
		for i < 255 && c.has(byte(i+1)) {
			i++
		}
		out = fmt.Appendf(out, `\x%02x`, lo)
		if i > lo {
			out = fmt.Appendf(out, `-\x%02x`, i)
		}
	}
	return append(out, ']')
}

func setOf(ranges string) charset {
	var c charset
	for i := 0; i+1 < len(ranges); i += 2 {
		c.add(ranges[i], ranges[i+1])
	}
	return c
}

// Sets of the C locale.
var (
	digits      = setOf("09")
	wordChars   = setOf("09AZaz__")
	spaceChars  = setOf("\t\r  ")
	newline     = setOf("\n\n")
	hspaceChars = setOf("\t\t  \xa0\xa0")
	vspaceChars = setOf("\n\r\x85\x85")
	notNewline  = newline.not()
	anyChar     = charset{}.not()
)

// namedSet is what [:name:] stands for.
func namedSet(name string) (charset, bool) {
	ranges := map[string]string{
		"alpha": "AZaz", "digit": "09", "alnum": "09AZaz", "upper": "AZ", "lower": "az",
		"space": "\t\r  ", "blank": "\t\t  ", "punct": "!/:@[`{~", "print": " ~", "graph": "!~",
		"cntrl": "\x00\x1f\x7f\x7f", "xdigit": "09AFaf", "word": "09AZaz__", "ascii": "\x00\x7f",
	}[name]
	return setOf(ranges), ranges != ""
}
