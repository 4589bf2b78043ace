// Package suite knows the mail suites that people run: how their Postfix is reached, where
// its tables and databases are, and which filters stand beside it. A suite is an entry of a
// table, made after its project's own files; it has no code of its own.
//
// It reads files and asks docker or podman for their containers to say which suite a machine
// has. It changes nothing.
package suite

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/program"
)

// Suite is a preset of a publisher's [policy].
type Suite struct {
	Name  string // of the preset
	Title string // of the project
	From  string // the files, of which version, that the entry is made after

	// Marks are files that only this suite has. Containers are those of a suite that
	// runs in some; the first is Postfix's.
	Marks      []string
	Containers []Container

	// Keys of [policy]. "{NAME}" stands for a container's name.
	Postfix string   // directory of main.cf
	Prefix  []string // none: it runs on the machine itself
	Hosts   []string
	List    []string
	Choose  []string

	Main    string // where an operator's settings of main.cf go, and what puts them in force; "" for main.cf itself
	Filters []Filter
	Notes   []string // what else the operator should know, a sentence or more each
}

// Container is one of a suite's containers.
type Container struct {
	Role    string // what "{ROLE}" stands for
	Name    string // by default
	Service string // of its compose file
	Image   string // part of its image's name
}

// Filter is one that the suite's Postfix asks, or hands mail to.
type Filter struct {
	Where   string // in main.cf
	Program string
	Does    string // the secondary
}

// Find returns a preset, nil for an unknown name.
func Find(name string) *Suite {
	for i := range Suites {
		if Suites[i].Name == name {
			return &Suites[i]
		}
	}
	return nil
}

// Names are those of all presets.
func Names() (all []string) {
	for _, s := range Suites {
		all = append(all, s.Name)
	}
	return all
}

// Renamed is the suite with the names that its containers have here, by their roles.
func (s Suite) Renamed(names map[string]string) Suite {
	var pairs []string
	s.Containers = slices.Clone(s.Containers)
	for i, c := range s.Containers {
		if n := names[c.Role]; n != "" {
			s.Containers[i].Name = n
		}
		pairs = append(pairs, "{"+c.Role+"}", s.Containers[i].Name)
	}
	r := strings.NewReplacer(pairs...)
	for _, list := range []*[]string{&s.Prefix, &s.Hosts, &s.List, &s.Choose} {
		*list = slices.Clone(*list)
		for i, w := range *list {
			(*list)[i] = r.Replace(w)
		}
	}
	s.Main = r.Replace(s.Main)
	return s
}

// Found is a suite that a machine has.
type Found struct {
	Suite          // with the names of its containers
	Why     string // how that is known
	Renamed bool   // a container isn't called as by default
}

// Detect looks for suites: running containers first, then files.
func Detect(ctx context.Context) (found []Found) {
	all := containers(ctx)
	for _, s := range Suites {
		names := map[string]string{}
		engine := ""
		for _, c := range s.Containers {
			for _, r := range all {
				if names[c.Role] == "" && c.is(r) {
					names[c.Role], engine = r.name, r.engine
				}
			}
		}
		if len(s.Containers) > 0 && names[s.Containers[0].Role] != "" {
			f := Found{Suite: s.Renamed(names), Why: fmt.Sprintf("%s ps shows the container %s", engine, names[s.Containers[0].Role])}
			if engine != "docker" {
				f.Suite = f.Suite.by(engine)
			}
			plain := s.Renamed(nil)
			f.Renamed = !slices.Equal(f.Prefix, plain.Prefix) || !slices.Equal(f.List, plain.List)
			found = append(found, f)
			continue
		}
		for _, mark := range s.Marks {
			if _, err := os.Stat(mark); err == nil {
				why := "there is " + mark
				if len(s.Containers) > 0 {
					why += ", but its Postfix doesn't run, as far as docker and podman say"
				}
				found = append(found, Found{Suite: s.Renamed(nil), Why: why})
				break
			}
		}
	}
	return found
}

// by is the suite whose containers another engine runs.
func (s Suite) by(engine string) Suite {
	if len(s.Prefix) > 0 {
		s.Prefix = append([]string{engine}, s.Prefix[1:]...)
	}
	s.Main = strings.Replace(s.Main, "docker ", engine+" ", 1)
	for i, l := range s.List {
		s.List[i] = strings.Replace(l, "=docker ", "="+engine+" ", 1)
	}
	return s
}

// running is a container as its engine shows it.
type running struct{ engine, name, image, service string }

func (c Container) is(r running) bool {
	if c.Service != "" && r.service != "" && r.service != c.Service {
		return false
	}
	image, _, _ := strings.Cut(r.image, "@") // which a digest follows
	return strings.Contains(image+":", c.Image+":")
}

// containers asks the engines that are installed.
func containers(ctx context.Context) (all []running) {
	for engine, label := range map[string]string{"docker": `{{.Label "com.docker.compose.service"}}`, "podman": `{{index .Labels "com.docker.compose.service"}}`} {
		path, err := exec.LookPath(engine)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, path, "ps", "--format", "{{.Names}}\t{{.Image}}\t"+label)
		const most = 1 << 20
		_, _ = program.Read(ctx, cmd, func(r io.Reader) error { // without an answer none is found
			sc := bufio.NewScanner(io.LimitReader(r, most))
			for sc.Scan() {
				if f := strings.Split(sc.Text(), "\t"); len(f) == 3 {
					if digits.MatchString(f[1]) {
						f[1] = imageOf(ctx, path, f[0])
					}
					all = append(all, running{engine, f[0], f[1], strings.ReplaceAll(f[2], "<no value>", "")})
				}
			}
			return sc.Err()
		})
	}
	slices.SortStableFunc(all, func(a, b running) int { return strings.Compare(a.engine, b.engine) })
	return all
}

// digits are shown in place of an image whose name belongs to a newer one, pulled since.
var digits = regexp.MustCompile(`^[0-9a-f]{12}$`)

// imageOf is the image that a container was started from, by name.
func imageOf(ctx context.Context, engine, container string) (name string) {
	cmd := exec.CommandContext(ctx, engine, "inspect", "--format", "{{.Config.Image}}", container)
	_, _ = program.Read(ctx, cmd, func(r io.Reader) error {
		line, err := io.ReadAll(io.LimitReader(r, 1<<10))
		name = strings.TrimSpace(string(line))
		return err
	})
	return name
}

// Check says what is wrong with an entry.
func (s *Suite) Check() error {
	var errs []error
	if s.Postfix == "" || s.From == "" || len(s.Marks)+len(s.Containers) == 0 {
		errs = append(errs, errors.New("lacks where Postfix is, what it is made after, or how it is known"))
	}
	r := s.Renamed(nil)
	for _, w := range slices.Concat(r.Prefix, r.Hosts) {
		if strings.ContainsAny(w, "{}") {
			errs = append(errs, fmt.Errorf("%q names no container", w))
		}
	}
	for _, w := range slices.Concat(r.Hosts, r.List, r.Choose) {
		if !strings.Contains(w, "=") {
			errs = append(errs, fmt.Errorf("%q lacks a \"=\"", w))
		}
	}
	return errors.Join(errs...)
}
