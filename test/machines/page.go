package main

import (
	"os"
	"strings"
)

// block is one to be pasted: where, and what.
type block struct{ where, text string }

// readPage returns the blocks below each heading of a page, in order. A block is
// indented by four spaces, and its first line, "# on ...", says where it is for; others are no blocks.
func readPage(name string) (map[string][]block, error) {
	b, err := os.ReadFile(name)
	page, heading, text := map[string][]block{}, "", ""
	flush := func() {
		where, script, _ := strings.Cut(text, "\n")
		if on, ok := strings.CutPrefix(where, "# on "); ok {
			page[heading] = append(page[heading], block{strings.TrimSuffix(on, ":"), script})
		}
		text = ""
	}
	for line := range strings.Lines(string(b) + "#\n") {
		code, indented := strings.CutPrefix(line, "    ")
		switch {
		case strings.HasPrefix(code, "# on "):
			flush()
			text = code
		case indented:
			text += code
		case line == "\n" && text != "":
			text += line
		default:
			flush()
		}
		if h, ok := strings.CutPrefix(line, "#"); ok {
			heading = strings.TrimLeft(strings.TrimSpace(h), "# ")
		}
	}
	return page, err
}
