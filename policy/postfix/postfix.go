// Package postfix reads the real configuration of a live Postfix and makes the
// policy of it that a secondary decides by, together with a Report of what the
// secondary can't decide as the primary does.
//
// Postfix itself is asked wherever it can answer: postconf evaluates main.cf
// (its defaults, macros and compatibility levels differ between versions),
// lists the services of master.cf and their overrides; postmap lists indexed
// tables as they are, not as their source says. What postmap can't list is
// read from its source: cidr, regexp and pcre files, the connection settings
// and queries of databases.
//
// Its job ends with the Spec: it watches nothing, writes nothing and asks no
// database by itself; a Lister does that. What can't be listed is asked through
// postmap, key by key, for the recipients that its caller names; its caller
// keeps the answers (Learned).
//
// Invariants: a source that can't be read fails the whole import and is named
// with its parameter; nothing that takes part in a decision is left out of the
// Report; where something can't be replicated, the default is the side that
// refuses nothing for good. A table's password never gets into the Spec or the
// Report.
package postfix

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix/filters"
	"github.com/understudy-mx/understudy/policy/table"
)

// Source says where a Postfix is and how to ask it.
type Source struct {
	// Host is where it lives; nil is this machine. Whatever is read, run or connected to
	// goes through it, but Commands.
	Host      *host.Host
	ConfigDir string // of the instance; "" for the default instance
	Service   string // master.cf's name of the service to stand in for, "" for the one on port 25

	Postconf, Postmap, Getent string // the commands; "" for those on the path or in /usr/sbin

	// Lister enumerates databases; nil leaves their tables unreplicated.
	Lister Lister
	// Commands print, on this machine, the entries of a table that can't be read
	// otherwise: for each a line "key", a tab and the value, or the key alone. A line
	// that begins with a tab says in words what the list lacks; then other keys may be
	// there, too. The key "@" says that a tcp or socketmap table's server searches for
	// parts of addresses by itself, as Postfix does in an indexed table. The map's key
	// is the table as in main.cf, without "proxy:".
	Commands map[string][]string
	// Queries list tables of mysql, pgsql and sqlite by way of the Lister and
	// the table's own connection: a SELECT of a key and, if a second column is
	// there, its value. The map's key is as in Commands.
	Queries map[string]string
	// Learned is what tables that can't be listed have answered so far; the
	// import asks them more and adds that. Nil leaves them unreplicated.
	Learned *Learned
	// Ask are recipients that the tables of Learned are to be asked about.
	// They may come from anywhere.
	Ask []string
	// Memo spares the databases what hasn't changed since the last import; nil
	// lists everything.
	Memo *Memo
	// RejectUnlisted takes keys that are missing in a listing by candidates for
	// absent, once its check has held. Without it recipients are answered 450
	// that only such keys could make known.
	RejectUnlisted bool
	// Filters say which filter listens where, in place of what Debian's
	// packages do: "ENDPOINT=PROGRAM:FILE", see package filters.
	Filters []string
	// Now is the clock by which what a greylist knows is too old; nil: time.Now.
	Now func() time.Time
	// Root is put before the paths of filters' configurations; "" for none.
	Root string
	// Choices says for an Item, by its ID, which of its Options to take. Usual does so
	// for items that need not be there, where Choices doesn't.
	Choices, Usual fidelity.Choices

	said map[string]said // by postconf, for the time of one import
}

// ParseLists reads "table=command" and "table=query:SELECT ..." for Source.
func ParseLists(list []string) (commands map[string][]string, queries map[string]string) {
	commands, queries = map[string][]string{}, map[string]string{}
	for _, s := range list {
		table, command, _ := strings.Cut(s, "=")
		if query, is := strings.CutPrefix(command, "query:"); is {
			queries[table] = strings.TrimSpace(query)
			continue
		}
		commands[table] = []string{"/bin/sh", "-c", command}
	}
	return commands, queries
}

// importer is one import under way.
type importer struct {
	ctx    context.Context
	src    *Source
	conf   *config
	set    settings // of the smtpd service
	spec   *policy.Spec
	report fidelity.Report
	errs   []error

	files   map[string]bool    // that the policy depends on
	polled  map[string]bool    // sources that announce no change
	read    map[string]reading // by the table's spelling
	classes map[string]bool    // restriction classes
	implied map[string]string  // of access tables: what a bare table stands for in their classes

	learned []learnedTable
	options lister.OptionFiles // of MySQL's clients

	filterActions map[string]bool // destinations of FILTER in tables

	services  []policyservice // in the order of the restrictions
	badPlaces bool            // Filters can't be read, and that is said

	everybody bool // exists: no_unknown_recipient_checks
}

// Import reads the configuration. An error joins all that is wrong; then there
// is no Spec. The Report is sorted and complete for the Spec that it comes with.
func Import(ctx context.Context, src Source) (*policy.Spec, fidelity.Report, error) {
	if src.ConfigDir != "" && src.Host.Local() { // commands run in other directories
		var err error
		if src.ConfigDir, err = filepath.Abs(src.ConfigDir); err != nil {
			return nil, fidelity.Report{}, err
		}
	}
	conf, err := readConfig(ctx, &src)
	if err != nil {
		return nil, fidelity.Report{}, err
	}
	i := &importer{
		ctx: ctx, src: &src, conf: conf, set: conf.smtpd, spec: policy.NewSpec(),
		files: map[string]bool{}, polled: map[string]bool{}, read: map[string]reading{}, classes: map[string]bool{}, implied: map[string]string{},
		filterActions: map[string]bool{},
	}
	i.spec.Tables = map[string]*table.Table{}
	i.spec.Classes = map[string][]policy.Restriction{}
	i.spec.Learned = map[string]policy.Learned{}
	i.report = fidelity.Report{Server: "Postfix", MailVersion: conf.version, CompatibilityLevel: i.set["compatibility_level"], Service: conf.service, Warnings: conf.warnings}
	i.listeners()
	i.settings()
	i.overrides()
	i.spec.NetworksMatchSubdomain = i.parentMatch("mynetworks")
	i.spec.MyNetworks = i.networks("mynetworks")
	i.clientLimits()
	i.addresses()
	i.restrictions()
	i.dnsbl()
	i.postscreen()
	i.content()
	i.milters()
	i.contentFilters()
	i.otherTables()
	i.commands()
	i.parameters()
	if err := ctx.Err(); err != nil {
		return nil, fidelity.Report{}, err
	}
	for _, id := range src.Choices.Unknown(&i.report) {
		i.errorf("choice %q: nothing in this configuration is called so", id)
	}
	i.learn()
	if err := errors.Join(i.errs...); err != nil {
		return nil, fidelity.Report{}, err
	}
	for _, name := range []string{"main.cf", "master.cf"} {
		i.files[filepath.Join(i.set["config_directory"], name)] = true
	}
	src.Memo.only(i.polled)
	i.report.Files, i.report.Polled = sortedKeys(i.files), sortedKeys(i.polled)
	i.report.LogFile, i.report.LogNames = i.set["maillog_file"], [2]string{i.set["syslog_name"], i.conf.postscreen["syslog_name"]}
	i.logged()
	i.concern()
	i.report.Sort()
	return i.spec, i.report, nil
}

// logged notes what stands in the log as the client didn't say it.
func (i *importer) logged() {
	r := &i.report
	r.AddsRecipients = i.set["always_bcc"]+i.set["sender_bcc_maps"]+i.set["recipient_bcc_maps"] != ""
	rewrites := func(table, classes, what string) bool {
		return i.set[table] != "" && strings.Contains(i.set[classes], what)
	}
	r.RewritesSenders = rewrites("canonical_maps", "canonical_classes", "envelope_sender") ||
		rewrites("sender_canonical_maps", "sender_canonical_classes", "envelope_sender") ||
		rewrites("masquerade_domains", "masquerade_classes", "envelope_sender")
	r.RewritesRecipients = i.set["enable_original_recipient"] == "no" // else the log has both
}

func (i *importer) errorf(format string, args ...any) {
	i.errs = append(i.errs, fmt.Errorf(format, args...))
}

// defaults are those that every report would have something to say about.
var defaults = map[string]string{"message_size_limit": "10240000", "smtpd_forbid_bare_newline": "no"}

// item notes one element of the configuration.
func (i *importer) item(parameter, element string, class fidelity.Class, why, instead string, options ...string) {
	it := fidelity.Item{Parameter: parameter, Element: element, Class: class, Why: why, Instead: instead, Options: options}
	it.Usual = element != "" && defaults[parameter] == element
	if class == fidelity.NotReplicated || class == fidelity.Approximated {
		it.Remedy = i.remedy(parameter, element, why)
	}
	i.report.Add(it)
}

// remedy is what the operator can do about an element that isn't replicated as
// it is.
func (i *importer) remedy(parameter, element, why string) string {
	switch {
	case why == unknownFilter || strings.Contains(why, filters.WhyLive):
		return filterRemedy(parameter, element, why)
	case strings.Contains(why, whyGreyUnread):
		return i.unreadRemedy("postgrey:DIR")
	case parameter == "postscreen_greet_action" && strings.Contains(why, whyScreenUnread):
		return i.unreadRemedy(strings.TrimPrefix(i.conf.postscreen["postscreen_cache_map"], "proxy:"))
	case strings.Contains(why, whyRefusing):
		return "name the answers that count in main.cf: zone=127.0.0.[2..11]"
	case why == whyReceived:
		return "anchor the rules at the field that they mean: /^Subject:.../"
	}
	for _, w := range words(element) {
		name, _ := tableName(w)
		if r, read := i.read[name]; read && (r.reason != nil || r.table != nil && (r.table.Partial != "" || r.table.DomainWide)) {
			typ, _, _ := strings.Cut(name, ":")
			remedy := "--list '" + name + "=COMMAND', a command that prints the table's entries"
			if isSQL(typ) {
				remedy = "--list '" + name + "=query:SELECT key, value FROM ...', or '...=COMMAND', a command that prints the table's entries"
			}
			if i.src.Learned == nil && slices.Contains(addressTables, parameter) && learnable(typ) {
				remedy += "; or --ask FILE, recipients to ask it about"
			}
			return remedy
		}
	}
	return ""
}

// choose returns the option that the operator wants.
func (i *importer) choose(parameter, element string, options ...string) string {
	it := fidelity.Item{Parameter: parameter, Element: element}
	choice, err := i.src.Choices.Of(it, options)
	if err != nil {
		i.errs = append(i.errs, err)
	}
	usual := i.src.Usual[it.ID()]
	if _, chosen := i.src.Choices[it.ID()]; !chosen && slices.Contains(options, usual) {
		return usual
	}
	return choice
}
