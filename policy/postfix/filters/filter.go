// Package filters reads the configurations of the filters that decide beside a
// Postfix: opendkim, opendmarc, policyd-spf and postgrey, as Debian 12 has them.
// It says what each of them could refuse, and gives the settings that a
// secondary follows. Of programs that examine what a message holds, such as
// rspamd and amavis, it says what becomes of what they find; they aren't followed.
//
// It finds out which filter listens at an endpoint of main.cf or master.cf by
// the places where Debian keeps their configurations. It runs none of them and
// connects to none.
//
// Invariants: no option of a file is passed over in silence; what isn't
// understood is named with file and line, and the filter then counts as one
// that can't be followed.
package filters

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// Programs that are understood.
const (
	OpenDKIM  = "opendkim"
	OpenDMARC = "opendmarc"
	PolicySPF = "policyd-spf"
	Postgrey  = "postgrey"
)

// Filter is one filter's configuration.
type Filter struct {
	Program string
	File    string
	Files   []string // that were read, sorted

	// Refuses are what it may refuse mail for, in words. With none, and nothing
	// in Unsure, it gives no verdict.
	Refuses []string
	// Unsure are settings because of which it can't be followed.
	Unsure []string
	// Handles are what it throws away, quarantines or returns after it was taken.
	Handles []string
	// Live says that it decides by what a message holds.
	Live bool
	// Notes are where a secondary that follows it differs.
	Notes []string

	// What a secondary follows; nil where there is no verdict, or none that
	// can be followed.
	SPF   *policy.SPFService
	DKIM  *policy.DKIMFilter
	DMARC *policy.DMARCFilter
	Grey  *policy.Greylist

	// What it tells the filters after it.
	Verifies bool   // DKIM signatures
	ServerID string // its authserv-id: "" is Postfix's name, HOSTNAME the host's
	Trusts   []string
}

// Harmless says that the filter refuses nothing by its settings.
func (f *Filter) Harmless() bool { return len(f.Refuses)+len(f.Unsure) == 0 }

// Judges says that it refuses something.
func (f *Filter) Judges() bool { return len(f.Refuses) > 0 }

// Option is an option of a program.
type Option struct {
	Name  string
	Class fidelity.Class
	Why   string
	off   []string // values at which it has no part in decisions, beside its absence
	must  bool     // it can refuse by itself; others only change what the program's own settings refuse
}

// setting is an option as a file has it.
type setting struct {
	name, value string
	file        string
	line        int
}

func (s setting) at() string { return fmt.Sprintf("%s:%d", s.file, s.line) }

// Options returns the options of a program, sorted by name; docs/PARITY.md is
// generated from them.
func Options(program string) []Option {
	all := slices.Clone(options[program])
	slices.SortFunc(all, func(a, b Option) int { return cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) })
	return all
}

// Programs returns the programs that are understood, sorted.
func Programs() []string { return slices.Sorted(maps.Keys(readers)) }

// For are those that can stand at a parameter or restriction of main.cf.
func For(parameter string) []string {
	switch parameter {
	case "smtpd_milters":
		return []string{ClamAVMilter, OpenDKIM, OpenDMARC, Rspamd, SpamAssMilter}
	case "smtpd_proxy_filter":
		return []string{Amavis, ClamSMTPD, SpamPD}
	}
	return []string{PolicySPF, Postgrey} // check_policy_service
}

var options = map[string][]Option{OpenDKIM: dkimOptions, OpenDMARC: dmarcOptions, PolicySPF: spfOptions, Postgrey: greyOptions,
	Rspamd: append(lives("actions"), Option{Name: "greylist", Class: fidelity.Approximated, Why: whyRspamdGrey}), ClamAVMilter: lives("OnInfected", "OnClean"), SpamAssMilter: lives("-r"), ClamSMTPD: lives("Action", "Bounce"), SpamPD: lives("--dose"), DSPAM: lives("Preference spamAction", "ClamAVResponse"),
	Amavis: lives("$final_virus_destiny", "$final_banned_destiny", "$final_unchecked_destiny", "$final_spam_destiny", "$final_bad_header_destiny"),
}

var readers = map[string]func(*Filter, *reader) error{
	OpenDKIM: (*Filter).openDKIM, OpenDMARC: (*Filter).openDMARC, PolicySPF: (*Filter).policySPF, Postgrey: (*Filter).postgrey,
	Rspamd: (*Filter).rspamd, ClamAVMilter: (*Filter).clamavMilter, SpamAssMilter: (*Filter).spamassMilter, Amavis: (*Filter).amavis,
	ClamSMTPD: (*Filter).clamSMTPD, SpamPD: (*Filter).spamPD, DSPAM: (*Filter).dspam,
}

// Read reads a program's configuration on the host where it runs. A file that can't be
// read is an error.
func Read(ctx context.Context, h *host.Host, program, file string) (*Filter, error) {
	f := &Filter{Program: program, File: file}
	r := reader{ctx: ctx, host: h}
	read := readers[program]
	if read == nil {
		return f, fmt.Errorf("%q is none of %s", program, strings.Join(Programs(), ", "))
	}
	err := read(f, &r)
	slices.Sort(r.files)
	f.Files = slices.Compact(r.files)
	return f, err
}

// judge names what can't be followed: unknown options, and those that the
// table says so about. It returns those that matter only where the filter's own
// settings refuse something.
func (f *Filter) judge(settings []setting, fold bool) (minor []string) {
	for _, s := range settings {
		at := slices.IndexFunc(options[f.Program], func(o Option) bool {
			return o.Name == s.name || fold && strings.EqualFold(o.Name, s.name)
		})
		if at < 0 {
			f.Unsure = append(f.Unsure, fmt.Sprintf("%s: %s knows no %s", s.at(), f.Program, quote(s.name)))
			continue
		}
		o := options[f.Program][at]
		off := slices.ContainsFunc(o.off, func(v string) bool { return strings.EqualFold(v, s.value) })
		switch {
		case off:
		case o.Class == fidelity.NotReplicated && o.must:
			f.Unsure = append(f.Unsure, fmt.Sprintf("%s: %s: %s", s.at(), o.Name, o.Why))
		case o.Class == fidelity.NotReplicated:
			minor = append(minor, fmt.Sprintf("%s: %s: %s", s.at(), o.Name, o.Why))
		case o.Class == fidelity.Approximated:
			f.Notes = append(f.Notes, fmt.Sprintf("%s: %s", o.Name, o.Why))
		}
	}
	return minor
}

// settle adds what matters only where the filter refuses something, and says
// whether it can be followed.
func (f *Filter) settle(minor []string) (followed bool) {
	if len(f.Refuses) == 0 {
		f.Notes = nil
		return false
	}
	f.Unsure = append(f.Unsure, minor...)
	return len(f.Unsure) == 0
}

func musts(all []Option) []Option {
	for i := range all {
		all[i].must = true
	}
	return all
}

func (f *Filter) unsure(s setting, format string, args ...any) {
	f.Unsure = append(f.Unsure, s.at()+": "+fmt.Sprintf(format, args...))
}

// quote shows a word of a file, cut short.
func quote(s string) string { return fmt.Sprintf("%.60q", s) }

func clean(path string) string { return filepath.Clean(path) }
