// Package exim reads the real configuration of a live Exim 4 and makes the policy of
// it that a secondary decides by, together with a Report of what the secondary can't
// decide as the primary does.
//
// Exim itself reads its files: "exim -bP config" prints them with their macros
// expanded and all that is included. Access control lists, named lists and routers
// become policy.ACL, in Exim's own words. What they look things up in (lsearch and
// dsearch, files of lists, the login names, SQL) is listed and goes into the Spec's
// tables.
//
// Its job ends with the Spec: it watches nothing and writes nothing. It never runs
// what a configuration would have Exim run: ${run}, ${perl}, ${readsocket} and the
// like are named in the Report.
//
// Invariants: a source that can't be read is named with the place that asks for it;
// nothing that takes part in a decision is left out of the Report; where something
// can't be followed, the default refuses nothing for good. A database's password never gets into the
// Spec or the Report.
package exim

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/program"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

// Source says where an Exim is and how to ask it.
type Source struct {
	Program string // "" for exim4 or exim on the path or in /usr/sbin
	Config  string // its configuration file, "" for its own choice
	// Choices says for an Item, by its ID, which of its Options to take.
	Choices fidelity.Choices
	// Rows runs a query; nil leaves databases unreplicated.
	Rows func(ctx context.Context, db *lister.Source, query string, row func(columns []string) error) error
	// Directory lists what a search finds in an LDAP directory; nil leaves directories
	// unreplicated.
	Directory func(ctx context.Context, db *lister.Source, entry func(lister.Entry) error) error
	// Getent is the command that lists login names; "" for the one on the path.
	Getent string
	// DBDump is the command that lists a file of Berkeley DB's; "" for db_dump on the path.
	DBDump string
	// Etc is where control panels keep their files; "" for /etc.
	Etc string
	// Own are the primary's addresses; nil for those of this machine.
	Own []string
	// Patience bounds each run of Exim; 0 for a minute.
	Patience time.Duration
}

// Databases lists real databases.
func Databases(ctx context.Context, db *lister.Source, query string, row func(columns []string) error) error {
	return db.Rows(ctx, query, row)
}

// Directories searches real directories.
func Directories(ctx context.Context, db *lister.Source, entry func(lister.Entry) error) error {
	return db.Directory(ctx, func(d *lister.Directory) error { return d.Search(db.Search, entry) })
}

// importer is one import under way.
type importer struct {
	ctx     context.Context
	src     *Source
	conf    *config
	spec    *policy.Spec
	acl     *policy.ACL
	report  fidelity.Report
	errs    []error
	asksDNS bool   // the string that was checked last asks the DNS
	here    string // where what is being read stands: FILE:LINE

	files   map[string]bool   // that the policy depends on
	polled  map[string]bool   // sources that announce no change
	failed  map[string]error  // tables that can't be listed
	queries map[string]string // of databases: what stands for each in the Spec
	tainted map[string]error  // variables whose values aren't known, and why
	routing bool              // a router is read
	clients map[string]bool   // variables that are set to what clients choose
	ofPerl  string            // a file that Perl opens, whatever its name is
	refused []string          // names of files in a string that this Exim doesn't open
	taints  bool              // this Exim opens no files whose names clients have a part in
}

// Import reads the configuration. An error joins all that is wrong; then there is no
// Spec.
func Import(ctx context.Context, src Source) (*policy.Spec, fidelity.Report, error) {
	i := &importer{ctx: ctx, src: &src, spec: policy.NewSpec(), files: map[string]bool{}, polled: map[string]bool{}, failed: map[string]error{},
		queries: map[string]string{}, tainted: map[string]error{}, clients: map[string]bool{}}
	if err := i.read(); err != nil {
		return nil, fidelity.Report{}, err
	}
	i.acl = &policy.ACL{Stages: map[string]string{}, Lists: map[string][]policy.ACLStatement{}, Files: map[string][]string{}}
	i.spec.ACL, i.spec.Tables = i.acl, map[string]*table.Table{}
	i.settings()
	i.namedLists()
	i.stages()
	i.routers()
	i.rewriting()
	i.options()
	i.domains()
	if err := ctx.Err(); err != nil {
		return nil, fidelity.Report{}, err
	}
	for _, id := range src.Choices.Unknown(&i.report) {
		i.errorf("choice %q: nothing in this configuration is called so", id)
	}
	if err := errors.Join(i.errs...); err != nil {
		return nil, fidelity.Report{}, err
	}
	slices.Sort(i.acl.Exist)
	i.acl.Exist = slices.Compact(i.acl.Exist)
	i.report.Files, i.report.Polled = slices.Sorted(maps.Keys(i.files)), slices.Sorted(maps.Keys(i.polled))
	i.report.Sort()
	return i.spec, i.report, nil
}

func (i *importer) errorf(format string, args ...any) {
	i.errs = append(i.errs, fmt.Errorf(format, args...))
}

// patience is how long Exim may take to print its configuration, which it reads from
// files alone.
const patience = time.Minute

// run runs Exim for its output.
func (s *Source) run(ctx context.Context, args ...string) (string, error) {
	name, err := s.find()
	if err != nil {
		return "", err
	}
	if s.Config != "" {
		args = append([]string{"-C", s.Config}, args...)
	}
	line := name + " " + strings.Join(args, " ")
	ctx, cancel := context.WithTimeoutCause(ctx, cmp.Or(s.Patience, patience), fmt.Errorf("%s doesn't answer: run it by hand, as the publisher's user, and see what it waits for", line))
	defer cancel()
	var out, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &stderr
	readErr, err := program.Read(ctx, cmd, func(r io.Reader) error {
		n, err := out.ReadFrom(io.LimitReader(r, most+1))
		if n > most {
			err = errors.New("it prints more than 64 MiB")
		}
		return err
	})
	if err = errors.Join(readErr, err); err == nil {
		return out.String(), nil
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	said := strings.TrimSpace(stderr.String())
	switch {
	case strings.Contains(said, "Permission denied"):
		said += "; let the publisher read it: see /usr/share/understudy/exim.conf"
	case strings.Contains(said, "Failed to get user name"): // of DynamicUser
		said += "; install libnss-systemd, which names the users that systemd makes"
	}
	return "", fmt.Errorf("%s: %w: %.400s", line, err, said)
}

func (s *Source) find() (string, error) {
	if s.Program != "" {
		return s.Program, nil
	}
	for _, name := range []string{"exim4", "exim"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
		if path := "/usr/sbin/" + name; isFile(path) {
			return path, nil
		}
	}
	return "", errors.New("no exim4 or exim is on the path or in /usr/sbin: run this on the primary, or name its program")
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && !st.IsDir()
}

var versionLine = regexp.MustCompile(`(?m)^Exim version (\S+)`)

// read asks Exim for its version and its configuration.
func (i *importer) read() error {
	said, err := i.src.run(i.ctx, "-bV")
	if err != nil {
		return err
	}
	m := versionLine.FindStringSubmatch(said)
	if m == nil {
		return fmt.Errorf("%s doesn't say which version of Exim it is", i.src.Program)
	}
	i.report = fidelity.Report{Server: "Exim", MailVersion: m[1]}
	if !strings.HasPrefix(m[1], "4.") {
		return fmt.Errorf("this is Exim %s; Exim 4 is read", m[1])
	}
	text, err := i.src.run(i.ctx, "-bP", "config")
	if err != nil {
		return err
	}
	settings, err := i.src.run(i.ctx, append([]string{"-bP"}, asked...)...)
	if err != nil {
		return err
	}
	file, err := i.src.run(i.ctx, "-bP", "configure_file")
	if err != nil {
		return err
	}
	if err := i.whole(text); err != nil {
		return err
	}
	i.conf, err = parseConfig(text)
	if err != nil {
		return err
	}
	i.conf.file = strings.TrimSpace(file)
	i.files[i.conf.file] = true
	for _, f := range i.conf.included {
		i.files[f] = true
	}
	i.conf.effective(settings)
	minor, _ := strconv.Atoi(strings.TrimFunc(m[1][2:min(4, len(m[1]))], func(r rune) bool { return r < '0' || r > '9' }))
	i.taints = minor >= 94 && i.conf.main["allow_insecure_tainted_data"] != "true"
	return nil
}

// whole checks that a printed configuration has all the parts that Exim knows: half of
// one may lack the statements that refuse. Its last part, usually, is the one that a
// cut takes first.
func (i *importer) whole(text string) error {
	have := map[string]bool{}
	for line := range strings.Lines(text) {
		if name, is := strings.CutSuffix(strings.TrimSpace(line), ":"); is {
			have[strings.TrimSpace(name)] = true
		}
	}
	for _, kind := range []string{"router", "transport", "authenticator"} {
		names, err := i.src.run(i.ctx, "-bP", kind+"_list")
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(names) {
			if !have[name] {
				return fmt.Errorf("exim -bP config doesn't print the %s %s: its output is cut short; run it by hand", kind, name)
			}
		}
	}
	return nil
}

// own are the addresses of the primary's interfaces.
func (i *importer) own() []string {
	if i.src.Own != nil {
		return i.src.Own
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		i.errorf("list this machine's addresses: %w", err)
	}
	var all []string
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			all = append(all, n.IP.String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// item notes one element of the configuration.
func (i *importer) item(parameter, element string, class fidelity.Class, why, instead string, options ...string) {
	i.report.Add(fidelity.Item{Parameter: parameter, Element: short(element), Class: class, Why: why, Instead: instead, Options: options})
}

// choose returns the option that the operator wants.
func (i *importer) choose(parameter, element string, options ...string) string {
	choice, err := i.src.Choices.Of(fidelity.Item{Parameter: parameter, Element: short(element)}, options)
	if err != nil {
		i.errs = append(i.errs, err)
	}
	return choice
}

// passwords are those of queries, and servers with theirs.
var (
	passwords = regexp.MustCompile(`(?i)(\bpass=).*?( ldap[is]?://|$)`)
	servers   = regexp.MustCompile(`(?i)(\bservers=)[^;{\s]*`)
)

// short is an element as the report spells it.
func short(s string) string {
	s = passwords.ReplaceAllString(strings.Join(strings.Fields(s), " "), "${1}…$2")
	s = servers.ReplaceAllString(s, "${1}…")
	const most = 160
	if len(s) > most {
		s = s[:most] + "…"
	}
	return s
}
