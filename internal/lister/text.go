package lister

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxLine bounds a line: an address has at most 254 octets, a list of aliases
// some more.
const maxLine = 256 << 10

var errLine = fmt.Errorf("a line of more than %d octets", maxLine)

// readLines leaves out the byte order mark with which some programs begin a text.
func readLines(r io.Reader, line func(string) error) error {
	in := bufio.NewReader(r)
	if mark, _ := in.Peek(3); string(mark) == "\ufeff" {
		_, _ = in.Discard(len(mark))
	}
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, maxLine)
	for sc.Scan() {
		if err := line(strings.TrimSuffix(sc.Text(), "\r")); err != nil {
			return err
		}
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return errLine
	}
	return sc.Err()
}

// listFile reads a text file as postmap(1) reads its source, which holds for a
// plain list of addresses too: a line is a key and maybe a value, "#" starts a
// comment line, a line that begins with space continues the one before, and a
// key with spaces stands in double quotes.
func (s *Source) listFile(ctx context.Context, row func(key, value string) error) error {
	f, err := os.Open(s.Path)
	if err != nil {
		return s.fail("path", "name a file that this user may read", err)
	}
	defer f.Close()
	return s.bounded(ctx, func(ctx context.Context, m *meter) error {
		defer context.AfterFunc(ctx, func() { f.Close() })()
		logical := ""
		n := 0
		flush := func() error {
			if logical == "" {
				return nil
			}
			key, value, err := splitKey(logical)
			if err != nil {
				return s.fail("path", "correct it", fmt.Errorf("%s:%d: %w", s.Path, n, err))
			}
			logical = ""
			return rowUnlessEmpty(m, func(key, value string) error {
				if err := row(key, value); err != nil {
					return fmt.Errorf("%s:%d: %w", s.Path, n, err)
				}
				return nil
			}, key, value)
		}
		at := 0
		err := readLines(metered{f, m}, func(line string) error {
			at++
			text := strings.TrimSpace(line)
			switch {
			case text == "" || text[0] == '#':
				return nil
			case line[0] == ' ' || line[0] == '\t':
				if logical += " " + text; len(logical) > maxLine {
					return s.fail("path", "correct it", fmt.Errorf("%s:%d: %w", s.Path, at, errLine))
				}
				return nil
			}
			err := flush()
			logical, n = text, at
			return err
		})
		if err == nil {
			err = flush()
		}
		if errors.Is(err, errLine) {
			return s.fail("path", "correct it", fmt.Errorf("%s:%d: %w", s.Path, at+1, errLine))
		}
		return err
	})
}

// splitKey cuts a logical line into key and value.
func splitKey(line string) (key, value string, err error) {
	if line[0] == '"' {
		for i := 1; i < len(line); i++ {
			switch line[i] {
			case '\\':
				if i++; i < len(line) {
					key += line[i : i+1]
				}
			case '"':
				return key, strings.TrimSpace(line[i+1:]), nil
			default:
				key += line[i : i+1]
			}
		}
		return "", "", errors.New("a quote isn't closed")
	}
	i := strings.IndexAny(line, " \t")
	if i < 0 {
		return line, "", nil
	}
	return line[:i], strings.TrimSpace(line[i:]), nil
}
