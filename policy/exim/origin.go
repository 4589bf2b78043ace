package exim

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// origin finds the lines of "exim -bP config" in the files that they come from. Exim
// prints what it understood: macros expanded, continued lines joined, and what .ifdef
// leaves out isn't there.
type origin struct {
	files  map[string]*sourceFile
	file   *sourceFile
	macros []macro // defined so far, the latest first
}

type macro struct{ name, value string }

// define notes a macro.
func (o *origin) define(name, line string) {
	_, value, _ := strings.Cut(line, "=")
	o.macros = append([]macro{{name, squeezed(strings.TrimPrefix(value, "="))}}, o.macros...)
}

// sourceFile is a file with its lines that say something.
type sourceFile struct {
	name  string
	lines []sourceLine
	next  int // after the last one that was found
}

type sourceLine struct {
	n        int
	text     string
	fragment string // of Debian's conf.d that the line is from
}

// enter goes on with a file.
func (o *origin) enter(name string) {
	if o.files == nil {
		o.files = map[string]*sourceFile{}
	}
	if o.files[name] == nil {
		o.files[name] = &sourceFile{name: name, lines: sourceLines(name)}
	}
	o.file = o.files[name]
}

// fragmentLine is what update-exim4.conf puts before each file of conf.d.
var fragmentLine = regexp.MustCompile(`^### ((?:main|acl|router|transport|retry|rewrite|auth)/[A-Za-z0-9_.-]+)$`)

// sourceLines reads a file as Exim does: comments left out, a line that ends in a
// backslash joined with what follows.
func sourceLines(name string) []sourceLine {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil // places are then told without a line
	}
	var out []sourceLine
	fragment, going := "", false
	for n, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			if m := fragmentLine.FindStringSubmatch(line); m != nil {
				fragment = m[1]
			}
			continue
		}
		line, more := strings.CutSuffix(line, `\`)
		switch {
		case going:
			out[len(out)-1].text += line
		case line == "" && !more, strings.HasPrefix(line, "."):
			continue
		default:
			out = append(out, sourceLine{n + 1, line, fragment})
		}
		going = more
	}
	for i := range out {
		out[i].text = squeezed(out[i].text)
	}
	return out
}

func squeezed(s string) string { return strings.Join(strings.Fields(s), " ") }

// locate says where a printed line is: FILE:LINE, or FILE.
func (o *origin) locate(line string) string {
	f := o.file
	if f == nil {
		return ""
	}
	line = squeezed(line)
	for _, is := range []func(source, printed string) bool{o.expands, o.like} {
		for _, from := range []int{f.next, 0} {
			for i := from; i < len(f.lines); i++ {
				if is(f.lines[i].text, line) {
					f.next = i + 1
					return f.place(i)
				}
			}
		}
	}
	return f.name
}

func (f *sourceFile) place(i int) string {
	l := &f.lines[i]
	if l.fragment != "" {
		return fmt.Sprintf("%s:%d (%s)", f.name, l.n, l.fragment)
	}
	return fmt.Sprintf("%s:%d", f.name, l.n)
}

// expands says that a line of a file is the one that was printed, its macros replaced.
func (o *origin) expands(source, printed string) bool {
	const most = 20 // macros within macros
	for range most {
		if source == printed {
			return true
		}
		i := slices.IndexFunc(o.macros, func(m macro) bool { return strings.Contains(source, m.name) })
		if i < 0 {
			return false
		}
		source = squeezed(strings.ReplaceAll(source, o.macros[i].name, o.macros[i].value))
	}
	return false
}

// like says that a line of a file may have become the one that was printed: between the
// macros in it, its text is there.
func (o *origin) like(source, printed string) bool {
	if source == printed {
		return true
	}
	pieces := []string{source}
	for _, m := range o.macros {
		if strings.Contains(source, m.name) {
			for i := 0; i < len(pieces); i++ {
				if before, after, ok := strings.Cut(pieces[i], m.name); ok {
					pieces = slices.Replace(pieces, i, i+1, before, after)
				}
			}
		}
	}
	last := len(pieces) - 1
	if last == 0 || !strings.HasPrefix(printed, pieces[0]) || !strings.HasSuffix(printed, strings.TrimSpace(pieces[last])) {
		return false
	}
	for _, p := range pieces {
		i := strings.Index(printed, strings.TrimSpace(p))
		if i < 0 {
			return false
		}
		printed = printed[i+len(strings.TrimSpace(p)):]
	}
	return true
}
