package publisher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/internal/suite"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// postfixImporter reads a live Postfix.
type postfixImporter struct {
	src     postfix.Source
	suite   string // its name, if any
	keep    bool   // what was learned, in the file
	file    string // has what the tables that can't be listed answered; only a cache: without it they are asked again
	learned postfix.Learned
	stamps  stamps
	saved   []byte // of learned, as the disk has it
	memo    postfix.Memo
}

func newPostfix(cfg *config.Config, keep bool) (Importer, error) {
	c := &cfg.Policy
	i := &postfixImporter{keep: keep, file: filepath.Join(Dir(cfg), "learned.json")}
	i.src = postfix.Source{
		Host: HostOf(c), ConfigDir: c.Postfix, Service: c.PostfixService, Lister: postfix.Databases{}, Learned: &i.learned, Memo: &i.memo,
		Choices: fidelity.ParseChoices(c.PostfixChoose), Filters: c.PostfixFilter, RejectUnlisted: c.PostfixUnlisted == "reject",
	}
	if i.suite = c.Suite; c.Preset != nil {
		i.src.Usual = fidelity.ParseChoices(c.Preset.Choose)
	}
	i.src.Commands, i.src.Queries = postfix.ParseLists(c.PostfixList)
	b, err := os.ReadFile(i.file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) { // a check by anybody else than the publisher
		return i, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &i.learned)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; remove it to ask the tables anew", i.file, err)
	}
	return i, nil
}

func (*postfixImporter) Name() string { return "postfix" }

// Changed asks the databases, and where Postfix lives elsewhere, for its files.
func (i *postfixImporter) Changed(ctx context.Context) bool {
	return i.memo.Changed(ctx, i.src.Lister) || i.stamps.changed(ctx, i.src.Host)
}

// HostOf is where the Postfix of a [policy] lives.
func HostOf(c *config.Policy) *host.Host {
	return &host.Host{Prefix: c.PostfixPrefix, Root: c.PostfixRoot, Servers: host.ParseServers(c.PostfixHosts)}
}

// stamps are those of files that can't be watched.
type stamps struct {
	mu     sync.Mutex // guards the rest; an import and a look at the files go on side by side
	of     map[string]string
	looked time.Time
}

// stampsEvery bounds how often a command is run for them.
const stampsEvery = 5 * time.Second

func (s *stamps) changed(ctx context.Context, h *host.Host) bool {
	before := s.due()
	if len(before) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	now, err := h.Stamps(ctx, slices.Sorted(maps.Keys(before)))
	return err == nil && !maps.Equal(now, before) // what can't be asked is read by and by, and then says so
}

// due are the stamps to compare with, nil when it isn't time to look.
func (s *stamps) due() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.looked) < stampsEvery {
		return nil
	}
	s.looked = time.Now()
	return s.of
}

// take notes the files as they are.
func (s *stamps) take(ctx context.Context, h *host.Host, files []string) {
	now, err := h.Stamps(ctx, files)
	if err != nil {
		now = nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of, s.looked = now, time.Now()
}

func (i *postfixImporter) Import(ctx context.Context, ask []string) (r Imported, err error) {
	here := i.src.Host.Local()
	for _, name := range []string{"main.cf", "master.cf"} {
		if !here {
			r.Polled = true
			continue
		}
		r.Files = append(r.Files, filepath.Join(i.src.ConfigDir, name))
	}
	src := i.src
	src.Ask = ask
	spec, report, err := postfix.Import(ctx, src)
	if err != nil {
		return r, fmt.Errorf("import %s: %w%s", src.ConfigDir, err, remedyThere(ctx, src.Host, i.suite, err))
	}
	spec.NotReplicated = report.Lacking()
	r.Choosing = `postfix_choose = ["ITEM=CHOICE", ...], postfix_list = ["TABLE=COMMAND", ...]`
	r.Report, r.Polled = &report, !here || len(report.Polled) > 0
	if here {
		r.Files = append(r.Files, report.Files...)
	} else {
		i.stamps.take(ctx, i.src.Host, report.Files)
	}
	if r.Snapshot, err = compile(spec); err == nil && i.keep {
		err = i.save()
	}
	return r, err
}

// remedyThere says what to do about a container, or a root, that can't be reached.
func remedyThere(ctx context.Context, h *host.Host, preset string, err error) string {
	said := strings.ToLower(err.Error())
	switch {
	case h.Local():
		return ""
	case h.Root != "":
		if errors.Is(err, fs.ErrPermission) {
			return "; let the publisher work below that root: /usr/share/understudy/chroot.conf says how"
		}
		return ""
	case strings.Contains(said, "no such container"), strings.Contains(said, "no container with name"), strings.Contains(said, "is not running"):
		for _, f := range suite.Detect(ctx) {
			if f.Name == preset && len(f.Prefix) > 0 && !slices.Equal(f.Prefix, h.Prefix) && strings.Contains(f.Why, " ps ") {
				return fmt.Sprintf("; %s: name it under [policy]: postfix_prefix = [\"%s\"]", f.Why, strings.Join(f.Prefix, `", "`))
			}
		}
		return fmt.Sprintf("; start it or, if %s ps shows another name, name it under [policy]: postfix_prefix = [%q, \"exec\", \"-i\", \"NAME\"]", h.Prefix[0], h.Prefix[0])
	case strings.Contains(said, "permission denied"):
		return fmt.Sprintf("; let the publisher run %s: /usr/share/understudy/docker.conf says how", h.Prefix[0])
	case strings.Contains(said, "executable file not found"):
		return "; install it, or correct postfix_prefix under [policy]"
	}
	return ""
}

func (i *postfixImporter) save() error {
	b, err := json.Marshal(&i.learned)
	if err != nil || bytes.Equal(b, i.saved) || len(i.learned.Tables) == 0 && i.saved == nil {
		return err
	}
	if err := service.ReplaceFile(i.file, b); err != nil {
		return fmt.Errorf("keep what was learned: %w", err)
	}
	i.saved = b
	return nil
}
