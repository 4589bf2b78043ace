// Package fidelity reports how faithfully a policy follows the configuration from
// which it was imported: the decisions that are exactly the primary's, those that
// can't be, and what the secondary does instead. Every importer fills the same
// Report, so that operators read one language, whatever the primary:
//
//	smtpd_milters: inet:localhost:11332     the item, parameter and element
//	    here: ignore                        what is done now
//	    or: --choose 'smtpd_milters: inet:localhost:11332=defer'
//
// A Report MUST name everything that takes part in a decision. Where something
// can't be replicated, the first of its Options refuses nothing for good.
package fidelity

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Class says how well the secondary follows the primary.
type Class string

const (
	Exact         Class = "exact"          // the same decision, offline
	GivenDNS      Class = "given-dns"      // the same decision given the same DNS answers
	Approximated  Class = "approximated"   // Why says where it differs
	NotReplicated Class = "not-replicated" // Why and Instead say what happens
	// NoDecision is a parameter that no reply depends on. The Report leaves
	// such parameters out.
	NoDecision Class = "no-decision"
)

// Substitutes for what the secondary can't do.
const (
	Ignore = "ignore" // as if it weren't there
	Soften = "soften" // refusals that follow become temporary (defer_if_reject)
	Defer  = "defer"  // what would be accepted is deferred (defer_if_permit)
	Pass   = "pass"   // clients that get there pass all of postscreen
	// The primary is asked at RCPT about recipients that would be accepted, and
	// may refuse them. If it can't be asked: deferred, or else as the name says.
	Ask           = "ask"
	AskElseIgnore = "ask-else-ignore"
	AskElseSoften = "ask-else-soften" // and refusals that follow are softened, as with Soften
	// Later is for what the primary decides about the whole message.
	Later = "accept; the primary decides when the message is relayed to it"
)

// Item is one restriction, table, list or limit that takes part in the
// decisions about inbound mail.
type Item struct {
	Parameter string   `json:"parameter"`
	Element   string   `json:"element"` // of the parameter's list, or its value
	Class     Class    `json:"class"`
	Why       string   `json:"why,omitempty"`
	Instead   string   `json:"instead,omitempty"` // what the secondary does
	Options   []string `json:"options,omitempty"` // what it can do; the first is the default
	Remedy    string   `json:"remedy,omitempty"`  // what the operator can do about it, beside choosing an option
	// Unknown items are domains or recipients that the secondary can't know: it
	// defers mail that may be for them. Concerns says how much that is.
	Unknown  bool   `json:"unknown,omitempty"`
	Concerns string `json:"concerns,omitempty"`
	// Domains: the item lists domains, not recipients. NoMail: all mail for these
	// domains is deferred.
	Domains, NoMail bool `json:"-"`
	// Usual: the value is the server's default.
	Usual bool `json:"-"`
}

// Mistake is a line of the primary's configuration that its server ignores, with no
// more than a line in its log.
type Mistake struct {
	File string `json:"file"`
	Line int    `json:"line"`
	What string `json:"what"`
}

// Contradiction is a table whose listing differs from the database's own answer: it
// lacks a key, or has a wrong one.
type Contradiction struct {
	Table string `json:"table"`
	What  string `json:"what"`
}

// ID names the item for Choices.
func (it Item) ID() string { return strings.TrimSpace(it.Parameter + ": " + it.Element) }

// Report lists what an import replicates and what it doesn't.
type Report struct {
	Server             string    `json:"server"` // the program: Postfix
	MailVersion        string    `json:"mail_version"`
	CompatibilityLevel string    `json:"compatibility_level,omitempty"` // of a Postfix
	Service            string    `json:"service,omitempty"`             // the one that we stand in for, of several
	Warnings           []string  `json:"warnings,omitempty"`            // the server's own
	Mistakes           []Mistake `json:"mistakes,omitempty"`

	Contradicted []Contradiction `json:"contradicted,omitempty"`

	Items []Item `json:"items"`

	// Files are all that the policy was read from; a change of one of them
	// calls for a new import. Polled are sources that announce no change:
	// databases, commands, the name service.
	Files  []string `json:"files,omitempty"`
	Polled []string `json:"polled,omitempty"`

	// LogFile is where the server logs its verdicts, "" where that is syslog's to
	// say. LogNames are the names under which its SMTP server does, and what stands
	// before that.
	LogFile  string    `json:"-"`
	LogNames [2]string `json:"-"`
	// AddsRecipients: it adds recipients of its own to messages. RewritesSenders,
	// RewritesRecipients: its log doesn't have those as the client gave them.
	AddsRecipients     bool `json:"-"`
	RewritesSenders    bool `json:"-"`
	RewritesRecipients bool `json:"-"`
}

// Add notes an item, once.
func (r *Report) Add(it Item) {
	if !slices.ContainsFunc(r.Items, func(o Item) bool { return o.ID() == it.ID() && o.Class == it.Class && o.Why == it.Why }) {
		r.Items = append(r.Items, it)
	}
}

// classOrder puts what needs the operator's attention first.
var classOrder = []Class{NotReplicated, Approximated, GivenDNS, Exact, NoDecision}

// rank puts what can't be known before all else, domains before recipients.
func (it Item) rank() int {
	switch {
	case !it.Unknown:
		return 2
	case !it.Domains:
		return 1
	}
	return 0
}

// Sort puts what needs the operator's attention first.
func (r *Report) Sort() {
	slices.SortStableFunc(r.Items, func(a, b Item) int {
		return cmp.Or(
			cmp.Compare(a.rank(), b.rank()),
			cmp.Compare(slices.Index(classOrder, a.Class), slices.Index(classOrder, b.Class)),
			cmp.Compare(a.Parameter, b.Parameter), cmp.Compare(a.Element, b.Element), cmp.Compare(a.Why, b.Why))
	})
}

// DomainsUnknown returns the lists of domains that the secondary can't know, so
// that all mail for them is deferred.
func (r *Report) DomainsUnknown() (lists []string) {
	for _, it := range r.of(func(it Item) bool { return it.NoMail }) {
		lists = append(lists, it.ID())
	}
	return lists
}

// Count returns how many items are of a class.
func (r *Report) Count(c Class) int { return len(r.of(func(it Item) bool { return it.Class == c })) }

// Lacking names the items that aren't replicated, each once and in order.
func (r *Report) Lacking() (ids []string) {
	for _, it := range r.of(func(it Item) bool { return it.Class == NotReplicated }) {
		ids = append(ids, it.ID())
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// HasOptions says that the operator can choose what to do instead of an item.
func (r *Report) HasOptions() bool {
	return slices.ContainsFunc(r.Items, func(it Item) bool { return len(it.Options) > 1 })
}

// headings introduce each class of items to the operator.
var headings = map[Class]string{
	NotReplicated: "Not replicated",
	Approximated:  "Approximated",
	GivenDNS:      "The same, given the same DNS answers",
	Exact:         "Exact",
	NoDecision:    "Irrelevant to decisions",
}

// Print writes the report for a person: items that need attention with their
// remedies, the rest in a line for each class or, with all, for each parameter.
func (r *Report) Print(w io.Writer, all bool) error {
	b := bufio.NewWriter(w)
	fmt.Fprintln(b, r.head())
	r.printContradicted(b)
	printBlocks(b, "Domains and recipients that can't be known", r.of(func(it Item) bool { return it.Unknown }))
	r.printMistakes(b)
	for _, c := range []Class{NotReplicated, Approximated} {
		printBlocks(b, headings[c], r.of(func(it Item) bool { return it.Class == c && !it.Unknown && (all || !it.Usual) }))
	}
	fmt.Fprintln(b)
	if usual := r.of(func(it Item) bool { return it.Usual }); !all && len(usual) > 0 {
		fmt.Fprintf(b, "%s, at %s's defaults (%d)\n", headings[Approximated], r.Server, len(usual))
	}
	for _, c := range []Class{GivenDNS, Exact} {
		items := r.of(func(it Item) bool { return it.Class == c })
		if len(items) == 0 {
			continue
		}
		fmt.Fprintf(b, "%s (%d)\n", headings[c], len(items))
		for all && len(items) > 0 {
			n := 1
			for n < len(items) && items[n].Parameter == items[0].Parameter {
				n++
			}
			printLine(b, items[:n])
			items = items[n:]
		}
	}
	if !all {
		fmt.Fprintln(b, "--all lists these, too.")
	}
	return b.Flush()
}

func (r *Report) head() string {
	head := r.Server + " " + r.MailVersion
	if r.CompatibilityLevel != "" {
		head += ", compatibility_level " + r.CompatibilityLevel
	}
	if r.Service != "" {
		head += ", service " + r.Service
	}
	return head
}

func (r *Report) printContradicted(w io.Writer) {
	if n := len(r.Contradicted); n > 0 {
		fmt.Fprintf(w, "\nListings that the database contradicts (%d)\n", n)
	}
	for _, c := range r.Contradicted {
		fmt.Fprintf(w, "  %s: %s\n", c.Table, c.What)
	}
}

func (r *Report) printMistakes(w io.Writer) {
	if n := len(r.Mistakes) + len(r.Warnings); n > 0 {
		fmt.Fprintf(w, "\nMistakes in the primary's own configuration (%d)\n", n)
	}
	for _, m := range r.Mistakes {
		fmt.Fprintf(w, "  %s:%d: %s\n", m.File, m.Line, m.What)
	}
	for _, s := range r.Warnings {
		fmt.Fprintf(w, "  %s: %s\n", r.Server, s)
	}
}

func (r *Report) of(which func(Item) bool) (items []Item) {
	for _, it := range r.Items {
		if which(it) {
			items = append(items, it)
		}
	}
	return items
}

func printBlocks(w io.Writer, heading string, items []Item) {
	if len(items) > 0 {
		fmt.Fprintf(w, "\n%s (%d)\n", heading, len(items))
	}
	for len(items) > 0 {
		n := 1
		for n < len(items) && items[n].Parameter == items[0].Parameter && items[n].alike(items[0]) {
			n++
		}
		printBlock(w, items[:n])
		items = items[n:]
	}
}

// alike says that both items are described alike.
func (it Item) alike(o Item) bool {
	return it.Why == o.Why && it.Instead == o.Instead && it.Remedy == o.Remedy && len(it.Options) < 2 && len(o.Options) < 2
}

// printLine shows what is replicated: one parameter with all its elements.
func printLine(w io.Writer, items []Item) {
	const most, width = 60, 100
	line := "  " + items[0].Parameter + ":"
	for n, it := range items {
		part := " " + oneLine(it.Element)
		if r := []rune(part); len(r) > most {
			part = string(r[:most-1]) + "…"
		}
		if it.Why != "" {
			part += " (" + it.Why + ")"
		}
		if n < len(items)-1 {
			part += ","
		}
		if n > 0 && len(line)+len(part) > width {
			fmt.Fprintln(w, line)
			line = "     "
		}
		line += part
	}
	fmt.Fprintln(w, line)
}

// printBlock shows items that aren't replicated and are described alike.
func printBlock(w io.Writer, items []Item) {
	for _, it := range items {
		fmt.Fprintf(w, "  %s\n", oneLine(it.ID()))
	}
	it := items[0]
	fmt.Fprintf(w, "      %s\n", it.Why)
	if it.Concerns != "" {
		fmt.Fprintf(w, "      concerns: %s\n", it.Concerns)
	}
	if it.Instead != "" {
		fmt.Fprintf(w, "      here: %s\n", it.Instead)
	}
	if it.Remedy != "" {
		fmt.Fprintf(w, "      remedy: %s\n", it.Remedy)
	}
	for _, o := range it.Options {
		if o != it.Instead {
			fmt.Fprintf(w, "      or: --choose '%s=%s'\n", it.ID(), o)
		}
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
