package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// canvas draws pictures on a terminal's alternate screen. It sends what has
// changed and no more: a picture whose clock alone moves costs ten octets, for
// those who watch over a slow line.
type canvas struct {
	out           io.Writer
	width, height int
	drawn         []string // as the terminal shows it, a line each
}

// The alternate screen, without a cursor and without wrapping long lines, and
// back.
const (
	screenOn  = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	screenOff = "\x1b[?7h\x1b[?25h\x1b[?1049l"
)

// draw shows lines, as many as the terminal has.
func (s *canvas) draw(lines []string) error {
	var b strings.Builder
	if w, h := terminalSize(s.out); s.drawn == nil || w != s.width || h != s.height {
		s.width, s.height, s.drawn = w, h, nil
		b.WriteString("\x1b[2J")
	}
	next := make([]string, s.height)
	for i := range next {
		if i < len(lines) {
			next[i] = clip(lines[i], s.width)
		}
		old := ""
		if s.drawn != nil {
			old = s.drawn[i]
		}
		redraw(&b, i+1, []rune(old), []rune(next[i]))
	}
	s.drawn = next
	_, err := io.WriteString(s.out, b.String())
	return err
}

// redraw makes old, in a row of the terminal, into line.
func redraw(b *strings.Builder, row int, old, line []rune) {
	at := 0
	for at < len(old) && at < len(line) && old[at] == line[at] {
		at++
	}
	if at == len(old) && at == len(line) {
		return
	}
	to := func(column int) { fmt.Fprintf(b, "\x1b[%d;%dH", row, column+1) }
	to(at)
	switch end := len(line) - 1; {
	case len(line) < len(old):
		b.WriteString(string(line[at:]) + "\x1b[K")
	case len(line) > len(old):
		b.WriteString(string(line[at:]))
	case slices.Equal(old[at+1:], line[at:end]) && end > at: // a chart that has moved on
		b.WriteString("\x1b[P")
		to(end)
		b.WriteString(string(line[end:]))
	default:
		for end > at && old[end] == line[end] {
			end--
		}
		b.WriteString(string(line[at : end+1]))
	}
}

// terminalSize is a terminal's width and height, 80 by 24 where nobody knows.
func terminalSize(w io.Writer) (width, height int) {
	if f, ok := w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 && size.Row > 0 {
			return int(size.Col), int(size.Row)
		}
	}
	return 80, 24
}

// clip cuts a line to a width. One that is longer, or holds characters that are
// two columns wide, would spoil the picture; ours have none.
func clip(s string, width int) string {
	r := []rune(s)
	for i, c := range r {
		if c > '~' && !slices.Contains(blocks, c) {
			r[i] = '?'
		}
	}
	return string(r[:min(len(r), width)])
}

// blocks are a sparkline's levels, plain those for a terminal without Unicode.
var (
	blocks = []rune(" ▁▂▃▄▅▆▇█")
	plain  = []rune(" ._-=+*%#")
)

// unicodeTerminal goes by the locale, as programs do.
func unicodeTerminal() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := strings.ToUpper(os.Getenv(name)); v != "" {
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return false
}

// sparkline draws values in a column each, the latest at the right of width
// columns, most as high as it goes. What isn't 0 can be seen.
func sparkline(values []float64, most float64, width int, levels []rune) string {
	values = values[max(0, len(values)-width):]
	line := slices.Repeat([]rune{' '}, width-len(values))
	top := float64(len(levels) - 1)
	for _, v := range values {
		level := 0
		if v > 0 {
			level = max(1, min(len(levels)-1, int(v/most*top+0.5)))
		}
		line = append(line, levels[level])
	}
	return string(line)
}

// roof is the next round number that holds v, at least 1, so that a chart's scale
// seldom changes.
func roof(v float64) float64 {
	for unit := 1.0; ; unit *= 10 {
		for _, k := range []float64{1, 2, 5} {
			if k*unit >= v {
				return k * unit
			}
		}
	}
}
