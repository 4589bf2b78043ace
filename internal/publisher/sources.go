package publisher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/pushed"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/postfix"
	"github.com/understudy-mx/understudy/policy/table"
	policysync "github.com/understudy-mx/understudy/sync"
)

// Reading is one look at all that a publisher's policy is made of.
type Reading struct {
	Imported
	Useless []string // sources without an address in the policy's domains
	sources []policysync.Source
}

// note tells how the reading of a source went; skipped says that it wasn't
// tried, because another had failed.
func (r *Reading) note(name string, err error, skipped bool) {
	s := policysync.Source{Name: name, Failing: err != nil && !skipped}
	if err == nil {
		s.Read = time.Now().UTC().Truncate(time.Second)
	}
	r.sources = append(r.sources, s)
}

// Check reads everything once, as a publisher with this configuration would.
func Check(ctx context.Context, cfg *config.Config) (*Reading, error) {
	i, err := importers[cfg.Policy.Kind()](cfg, false)
	if err != nil {
		return nil, err
	}
	return read(ctx, cfg, i, nil)
}

// read reads the policy and the sources of recipients. On an error the reading
// still names the files to watch.
func read(ctx context.Context, cfg *config.Config, i Importer, ask []string) (*Reading, error) {
	r := &Reading{}
	err := r.policy(ctx, cfg, i, ask)
	var spec *policy.Spec
	if err == nil && len(cfg.Sources) > 0 {
		spec = copySpec(r.Snapshot.Spec())
	}
	for i := range cfg.Sources {
		if cfg.Sources[i].Ask {
			continue
		}
		src, e := r.lister(&cfg.Sources[i])
		skipped := err != nil
		if err == nil {
			err = e
		}
		if err == nil {
			err = r.addRecipients(ctx, spec, src, doubtful(src))
		}
		r.note(src.Name, err, skipped)
	}
	if err == nil && spec != nil {
		r.Snapshot, err = policy.Compile(spec)
	}
	return r, err
}

// policy imports, once it knows whom else to ask about.
func (r *Reading) policy(ctx context.Context, cfg *config.Config, i Importer, ask []string) (err error) {
	for n := range cfg.Sources {
		if !cfg.Sources[n].Ask || err != nil {
			continue
		}
		var src *lister.Source
		if src, err = r.lister(&cfg.Sources[n]); err == nil {
			err = src.List(ctx, func(key, _ string) error { ask = append(ask, key); return nil })
		}
		r.note(src.Name, err, false)
	}
	skipped := err != nil
	files, polled := r.Files, r.Polled
	if !skipped {
		r.Imported, err = i.Import(ctx, ask)
	}
	r.Files, r.Polled = append(files, r.Files...), polled || r.Polled
	r.note(i.Name(), err, skipped)
	return err
}

// lister notes what a [[source]] depends on, and translates it.
func (r *Reading) lister(c *config.Source) (*lister.Source, error) {
	src, polled, files, err := listerOf(c)
	r.Files, r.Polled = append(r.Files, files...), r.Polled || polled
	return src, err
}

// listerOf translates a [[source]].
func listerOf(c *config.Source) (src *lister.Source, polled bool, files []string, err error) {
	src = &lister.Source{Type: c.Type, Name: "source " + c.Name, Query: c.Query, Command: c.Command, Path: c.Path}
	switch c.Type {
	case "file":
		return src, false, append([]string{c.Path}, unsureFile(c.Path)...), nil
	case "map":
		_, path, _ := strings.Cut(strings.TrimPrefix(c.Path, "proxy:"), ":")
		if !filepath.IsAbs(path) {
			return src, true, nil, nil
		}
		return src, false, []string{path, path + ".db", path + ".lmdb", path + ".cdb"}, nil
	case "sqlite":
		src.Settings = map[string]string{"dbpath": c.Path}
		return src, true, nil, nil
	case "command":
		return src, true, nil, nil
	}
	if src.Settings, err = postfix.ReadTableFile(c.Connection); err != nil {
		err = fmt.Errorf("source %s: connection: %w", c.Name, err)
	}
	base := c.Base
	if base == "" {
		base = src.Settings["search_base"]
	}
	src.Search = lister.Search{Base: base, Scope: c.Scope, Filter: c.Filter, Attributes: c.Attributes}
	return src, true, []string{c.Connection}, err
}

// unsureFile names the file beside a list that was pushed that is there while the list
// is in doubt; none beside another file.
func unsureFile(path string) []string {
	domain, list := strings.CutSuffix(path, pushed.ListName(""))
	if !list {
		return nil
	}
	return []string{pushed.UnsureName(domain)}
}

// doubtful says that a source is such a list: it is stale.
func doubtful(src *lister.Source) bool {
	for _, name := range unsureFile(src.Path) {
		if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) { // in doubt, too
			return src.Type == "file"
		}
	}
	return false
}

// copySpec copies what addRecipients changes.
func copySpec(old *policy.Spec) *policy.Spec {
	s := *old
	if s.Tables = maps.Clone(old.Tables); s.Tables == nil {
		s.Tables = map[string]*table.Table{}
	}
	for _, c := range classes(&s) {
		c.Recipients = slices.Clone(c.Recipients)
	}
	return &s
}

// classes are the address classes that a table of recipients can belong to.
func classes(s *policy.Spec) []*policy.AddressClass {
	return []*policy.AddressClass{&s.Addresses.Local, &s.Addresses.VirtualMailbox, &s.Addresses.Relay}
}

// maxAddress is longer than any address of RFC 5321 §4.5.3.1.
const maxAddress = 320

// addRecipients lists a source and adds what it holds to every class that
// lists its recipients. In the others everybody exists already. While the source is in
// doubt, an unknown recipient of those classes that it lists is refused for now only.
func (r *Reading) addRecipients(ctx context.Context, spec *policy.Spec, src *lister.Source, doubtful bool) error {
	listed := map[string]*policy.AddressClass{} // of domains whose recipients are listed
	for _, c := range classes(spec) {
		for _, d := range c.Domains {
			if len(c.Recipients) > 0 {
				listed[d] = c
			}
		}
	}
	var keys []string
	used := false
	err := src.List(ctx, func(key, _ string) error {
		unseen := func(c rune) bool { return c <= ' ' || c == 0x7f }
		if src.Type == "file" { // its writer can correct it
			unseen = envelope.Unseen
		}
		if len(key) > maxAddress || strings.ContainsFunc(key, unseen) {
			return fmt.Errorf("%s: %.80q is no address; let it list addresses only", src.Name, key)
		}
		key = strings.ToLower(key)
		domain := key[strings.LastIndexByte(key, '@')+1:]
		class := cmp.Or(listed[domain], listed[parent(domain)])
		used = used || class != nil || domain == key
		if class != nil && doubtful {
			class.Incomplete = true
		}
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		return err
	}
	if !used && len(keys) > 0 {
		r.Useless = append(r.Useless, src.Name)
	}
	slices.Sort(keys)
	t, err := table.NewSet(slices.Compact(keys))
	if err != nil {
		return fmt.Errorf("%s: %w", src.Name, err)
	}
	name := strings.Replace(src.Name, " ", ":", 1)
	spec.Tables[name] = t
	for _, c := range classes(spec) {
		if len(c.Recipients) > 0 {
			c.Recipients = append(c.Recipients, name)
		}
	}
	return nil
}

// parent is the nearest domain above, with its dot, as classes spell it.
func parent(domain string) string {
	if i := strings.IndexByte(domain, '.'); i >= 0 {
		return domain[i:]
	}
	return ""
}
