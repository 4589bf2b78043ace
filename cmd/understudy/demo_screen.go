package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// screen prints the demo's story: redrawn progress bars and colour on a
// terminal, plain lines elsewhere. One goroutine uses it.
type screen struct {
	w       io.Writer
	tty     bool
	colour  bool
	began   time.Time
	barOpen bool
	last    string // the bar's text as it stands
	quarter int    // of the bar, last printed where it can't be redrawn
}

// newScreen returns a screen on w, which calls gone when w takes no more.
func newScreen(w io.Writer, gone context.CancelCauseFunc) *screen {
	tty := isTerminal(w) && os.Getenv("TERM") != "dumb"
	return &screen{w: &demoReader{w, gone}, tty: tty, colour: tty && os.Getenv("NO_COLOR") == "", began: time.Now()}
}

// Styles, as SGR parameters.
const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (s *screen) paint(style, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + style + "m" + text + "\x1b[0m"
}

// act begins a part of the story.
func (s *screen) act(format string, args ...any) {
	s.endBar()
	s.quarter = 0
	fmt.Fprintf(s.w, "\n%s %s\n", s.paint(dim, fmt.Sprintf("%5.1fs", time.Since(s.began).Seconds())),
		s.paint(bold, fmt.Sprintf(format, args...)))
}

// say prints one line of it.
func (s *screen) say(format string, args ...any) {
	s.endBar()
	fmt.Fprintf(s.w, "       "+format+"\n", args...)
}

const barWidth = 20

// bar shows how much is done: in place on a terminal, elsewhere a line for
// each quarter.
func (s *screen) bar(done, total int, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if total <= 0 {
		return
	}
	if !s.tty {
		if q := done * 4 / total; q > s.quarter {
			s.quarter = q
			s.say("%3d %%  %s", done*100/total, text)
		}
		return
	}
	if s.barOpen && text == s.last {
		return
	}
	n := min(barWidth, done*barWidth/total)
	fmt.Fprintf(s.w, "\r       %s%s  %s\x1b[K", s.paint(green, strings.Repeat("█", n)), s.paint(dim, strings.Repeat("░", barWidth-n)), text)
	s.barOpen, s.last = true, text
}

// endBar leaves the bar as it stands.
func (s *screen) endBar() {
	if s.barOpen {
		fmt.Fprintln(s.w)
		s.barOpen = false
	}
}

// demoReader is where the demo's output goes; the demo ends when it has gone.
type demoReader struct {
	io.Writer
	gone context.CancelCauseFunc
}

func (r *demoReader) Write(b []byte) (int, error) {
	n, err := r.Writer.Write(b)
	if err != nil {
		// Without %w: a demo that was cut short is no success.
		r.gone(fmt.Errorf("write: %v", err))
	}
	return n, err
}
