package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix"
	"github.com/understudy-mx/understudy/policy/table"
	policysync "github.com/understudy-mx/understudy/sync"
)

// reading is one look at all that a publisher's policy is made of.
type reading struct {
	snapshot *policy.Snapshot // nil when something failed
	files    []string         // whose change calls for another reading
	polled   bool             // something announces no change
	report   *fidelity.Report // nil without a Postfix
	useless  []string         // sources without an address in the policy's domains
	sources  []policysync.Source
}

// note tells how the reading of a source went; skipped says that it wasn't
// tried, because another had failed.
func (r *reading) note(name string, err error, skipped bool) {
	s := policysync.Source{Name: name, Failing: err != nil && !skipped}
	if err == nil {
		s.Read = time.Now().UTC().Truncate(time.Second)
	}
	r.sources = append(r.sources, s)
}

// before is what is known when the sources are read. The zero value is nothing.
type before struct {
	learned  *postfix.Learned
	memo     *postfix.Memo
	ask      []string         // recipients that tables which can't be listed are asked about
	snapshot *policy.Snapshot // shares memory with what is read
}

// readSources reads the policy and the sources of recipients. On an error the
// reading still names the files to watch.
func readSources(ctx context.Context, cfg *config.Config, was before) (*reading, error) {
	r := &reading{}
	var err error
	if cfg.Policy.Postfix != "" {
		err = r.readPostfix(ctx, cfg, was)
	} else {
		r.snapshot, r.files, err = readPolicy(cfg.Policy.File, was.snapshot)
		r.note("policy", err, false)
	}
	var spec *policy.Spec
	if err == nil && len(cfg.Sources) > 0 {
		spec = copySpec(r.snapshot.Spec())
	}
	for i := range cfg.Sources {
		if cfg.Sources[i].Ask {
			continue
		}
		src, polled, files, e := listerOf(&cfg.Sources[i])
		r.files, r.polled = append(r.files, files...), r.polled || polled
		skipped := err != nil
		if err == nil {
			err = e
		}
		if err == nil {
			err = r.addRecipients(ctx, spec, src)
		}
		r.note(src.Name, err, skipped)
	}
	if err == nil && spec != nil {
		r.snapshot, err = policy.Compile(spec)
	}
	if err != nil {
		r.snapshot = nil
	}
	return r, err
}

func (r *reading) readPostfix(ctx context.Context, cfg *config.Config, was before) error {
	ask := was.ask
	for _, name := range []string{"main.cf", "master.cf"} {
		r.files = append(r.files, filepath.Join(cfg.Policy.Postfix, name))
	}
	for i := range cfg.Sources {
		if !cfg.Sources[i].Ask {
			continue
		}
		src, polled, files, err := listerOf(&cfg.Sources[i])
		r.files, r.polled = append(r.files, files...), r.polled || polled
		if err == nil {
			err = src.List(ctx, func(key, _ string) error { ask = append(ask, key); return nil })
		}
		r.note(src.Name, err, false)
		if err != nil {
			r.note("postfix", err, true)
			return err
		}
	}
	commands, queries := postfix.ParseLists(cfg.Policy.PostfixList)
	spec, report, err := postfix.Import(ctx, postfix.Source{
		ConfigDir: cfg.Policy.Postfix, Service: cfg.Policy.PostfixService, Lister: postfix.Databases{},
		Learned: was.learned, Memo: was.memo, Ask: ask, Choices: fidelity.ParseChoices(cfg.Policy.PostfixChoose), Commands: commands, Queries: queries,
		RejectUnlisted: cfg.Policy.PostfixUnlisted == "reject",
	})
	r.note("postfix", err, false)
	if err != nil {
		return fmt.Errorf("import %s: %w", cfg.Policy.Postfix, err)
	}
	dropLiterals(&spec.Addresses.Local)
	r.report, r.files, r.polled = &report, merge(r.files, report.Files), r.polled || len(report.Polled) > 0
	r.snapshot, err = policy.Compile(spec)
	return err
}

// dropLiterals takes the primary's own addresses, such as [192.0.2.1], out of
// its domains. Mail for them goes to that machine; no MX leads it to a secondary,
// which names by domain what its primary may fill.
func dropLiterals(c *policy.AddressClass) {
	literal := func(d string) bool { return strings.HasPrefix(d, "[") }
	c.Domains, c.Match = slices.DeleteFunc(c.Domains, literal), slices.DeleteFunc(c.Match, literal)
}

// acceptedDomains are those that the policy accepts mail for, sorted.
func acceptedDomains(spec *policy.Spec) []string {
	a := &spec.Addresses
	all := slices.Concat(a.Local.Domains, a.VirtualAliases.Domains, a.VirtualMailbox.Domains, a.Relay.Domains)
	slices.Sort(all)
	return slices.Compact(all)
}

// listerOf translates a [[source]].
func listerOf(c *config.Source) (src *lister.Source, polled bool, files []string, err error) {
	src = &lister.Source{Type: c.Type, Name: "source " + c.Name, Query: c.Query, Command: c.Command, Path: c.Path}
	switch c.Type {
	case "file":
		return src, false, []string{c.Path}, nil
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
// lists its recipients. In the others everybody exists already.
func (r *reading) addRecipients(ctx context.Context, spec *policy.Spec, src *lister.Source) error {
	listed := map[string]bool{} // domains whose recipients are listed
	for _, c := range classes(spec) {
		for _, d := range c.Domains {
			listed[d] = listed[d] || len(c.Recipients) > 0
		}
	}
	var keys []string
	used := false
	err := src.List(ctx, func(key, _ string) error {
		if len(key) > maxAddress || strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return fmt.Errorf("%s: %.80q is no address; let it list addresses only", src.Name, key)
		}
		key = strings.ToLower(key)
		domain := key[strings.LastIndexByte(key, '@')+1:]
		used = used || listed[domain] || domain == key || listed[parent(domain)]
		keys = append(keys, key)
		return nil
	})
	if err != nil {
		return err
	}
	if !used && len(keys) > 0 {
		r.useless = append(r.useless, src.Name)
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
