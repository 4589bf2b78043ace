package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// pkg is a package with its mutants.
type pkg struct {
	dir, name string
	fset      *token.FileSet
	files     []*file
	mutants   []*mutant
}

type file struct {
	path   string // absolute
	shown  string // from the module's root
	src    []byte
	syntax *ast.File
}

// mutant is one small change. The source gets before and after around a piece
// of it; they contain %d for the number of the switch.
type mutant struct {
	id            int
	in            *file
	file          string
	line          int
	from, to      int // offsets
	before, after string
	what          string // file and mutation, without the line, which moves
}

// listed is what go list says.
type listed struct {
	Dir, ImportPath, Name, Export string
	GoFiles                       []string
}

// load reads a package and finds its mutants.
func load(ctx context.Context, dir string) (*pkg, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-export", "-deps", "-json=Dir,ImportPath,Name,Export,GoFiles", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w", dir, err)
	}
	exports := map[string]string{}
	var it listed
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		exports[l.ImportPath], it = l.Export, l // the package itself comes last
	}
	p := &pkg{dir: it.Dir, name: it.Name, fset: token.NewFileSet()}
	var syntax []*ast.File
	for _, name := range it.GoFiles {
		f := &file{path: filepath.Join(it.Dir, name), shown: filepath.ToSlash(filepath.Join(dir, name))}
		if f.src, err = os.ReadFile(f.path); err != nil {
			return nil, err
		}
		if f.syntax, err = parser.ParseFile(p.fset, f.path, f.src, parser.SkipObjectResolution); err != nil {
			return nil, err
		}
		p.files, syntax = append(p.files, f), append(syntax, f.syntax)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Importer: importer.ForCompiler(p.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })}
	if _, err := conf.Check(it.ImportPath, p.fset, syntax, info); err != nil {
		return nil, err
	}
	for _, f := range p.files {
		p.find(f, info)
	}
	return p, nil
}

// choose keeps those to try, and some more, because not all of them build.
func (p *pkg) choose(s selection) error {
	files, err := regexp.Compile(s.files)
	if err != nil {
		return err
	}
	p.mutants = slices.DeleteFunc(p.mutants, func(m *mutant) bool {
		return !strings.Contains(m.what, s.only) || !files.MatchString(filepath.Base(m.file))
	})
	sum := func(m *mutant) string {
		h := sha256.Sum256([]byte(s.seed + "\n" + m.what))
		return string(h[:])
	}
	slices.SortStableFunc(p.mutants, func(a, b *mutant) int { return strings.Compare(sum(a), sum(b)) })
	p.mutants = p.mutants[:min(s.n+s.n/4+5, len(p.mutants))]
	for i, m := range p.mutants {
		m.id = i + 1
	}
	return nil
}

// switches is the file that every package gets beside its own.
const switches = `package %s

import (
	mutantOS "os"
	mutantConv "strconv"
	mutantSync "sync"
)

var (
	mutantNow, _  = mutantConv.Atoi(mutantOS.Getenv("MUTANT"))
	mutantReached = mutantOS.Getenv("MUTANTS_REACHED")
	mutantSeen    mutantSync.Map
)

func mutant(n int) bool {
	if mutantReached != "" {
		if _, seen := mutantSeen.LoadOrStore(n, true); !seen {
			if f, err := mutantOS.OpenFile(mutantReached, mutantOS.O_WRONLY|mutantOS.O_CREATE|mutantOS.O_APPEND, 0o600); err == nil {
				f.WriteString(mutantConv.Itoa(n) + "\n")
				f.Close()
			}
		}
	}
	return n == mutantNow
}

func mutantAdd[T ~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~uintptr](n int, v T) T {
	if mutant(n) {
		v++
	}
	return v
}
`

// compile builds the test binary of a package, with the mutants of p. What the
// compiler refuses is no mutant.
func (p *pkg) compile(ctx context.Context, temp, binary, dir string) error {
	const tries = 20
	for range tries {
		overlay := map[string]string{}
		put := func(path string, b []byte) error {
			to := filepath.Join(temp, filepath.Base(path))
			overlay[path] = to
			return os.WriteFile(to, b, 0o600)
		}
		err := put(filepath.Join(p.dir, "zz_mutants.go"), fmt.Appendf(nil, switches, p.name))
		for _, f := range p.files {
			if err == nil {
				err = put(f.path, p.source(f))
			}
		}
		if err != nil {
			return err
		}
		j, err := json.Marshal(map[string]any{"Replace": overlay})
		if err == nil {
			err = os.WriteFile(filepath.Join(temp, "overlay.json"), j, 0o600)
		}
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-gcflags=-e", "-overlay", filepath.Join(temp, "overlay.json"), "-o", binary, dir)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		if !p.drop(string(out)) {
			return fmt.Errorf("build %s: %w\n%s", dir, err, out)
		}
	}
	return fmt.Errorf("build %s: the compiler refuses mutants %d times", dir, tries)
}

var place = regexp.MustCompile(`(?m)^(\S+\.go):(\d+):`)

// drop drops the mutants of the lines that a compiler complains of.
func (p *pkg) drop(complaints string) bool {
	before := len(p.mutants)
	for _, c := range place.FindAllStringSubmatch(complaints, -1) {
		line, _ := strconv.Atoi(c[2]) // digits
		p.mutants = slices.DeleteFunc(p.mutants, func(m *mutant) bool {
			last := m.line + strings.Count(string(m.in.src[m.from:m.to]), "\n")
			return filepath.Base(c[1]) == filepath.Base(m.file) && line >= m.line && line <= last
		})
	}
	return len(p.mutants) < before
}

// source is a file with its mutants in it.
func (p *pkg) source(f *file) []byte {
	var in []*mutant
	for _, m := range p.mutants {
		if m.in == f {
			in = append(in, m)
		}
	}
	type piece struct {
		at    int
		order [3]int // what ends, ends first; then what begins, the longest first
		text  string
	}
	var pieces []piece
	for i, m := range in {
		pieces = append(pieces, piece{m.from, [3]int{1, -m.to, i}, strings.ReplaceAll(m.before, "%d", strconv.Itoa(m.id))})
		if m.after != "" {
			pieces = append(pieces, piece{m.to, [3]int{0, -m.from, -i}, strings.ReplaceAll(m.after, "%d", strconv.Itoa(m.id))})
		}
	}
	slices.SortStableFunc(pieces, func(a, b piece) int { return cmp.Or(cmp.Compare(a.at, b.at), slices.Compare(a.order[:], b.order[:])) })
	var out []byte
	last := 0
	for _, e := range pieces {
		out = append(append(out, f.src[last:e.at]...), e.text...)
		last = e.at
	}
	return append(out, f.src[last:]...)
}
