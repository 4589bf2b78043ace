package postfix

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Class says how well the secondary does what the primary does.
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

// What the secondary does instead of something that it can't do.
const (
	optIgnore = "ignore" // as if it weren't there
	optSoften = "soften" // refusals that follow become temporary (defer_if_reject)
	optDefer  = "defer"  // what would be accepted is deferred (defer_if_permit)
	optPass   = "pass"   // clients that get there pass all of postscreen
	// optLater is for what the primary decides about the whole message.
	optLater = "accept; the primary decides when the message is relayed to it"
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
}

// ID names the item for Source.Choices.
func (it Item) ID() string { return strings.TrimSpace(it.Parameter + ": " + it.Element) }

// Report lists what an import replicates and what it doesn't.
type Report struct {
	MailVersion        string   `json:"mail_version"`
	CompatibilityLevel string   `json:"compatibility_level"`
	Service            string   `json:"service"`            // of master.cf
	Warnings           []string `json:"warnings,omitempty"` // postconf's own
	Items              []Item   `json:"items"`

	// Files are all that the policy was read from; a change of one of them
	// calls for a new import. Polled are sources that announce no change:
	// databases, commands, the name service.
	Files  []string `json:"files,omitempty"`
	Polled []string `json:"polled,omitempty"`
}

func (r *Report) add(it Item) {
	if !slices.ContainsFunc(r.Items, func(o Item) bool { return o.ID() == it.ID() && o.Class == it.Class && o.Why == it.Why }) {
		r.Items = append(r.Items, it)
	}
}

// classOrder puts what needs the operator's attention first.
var classOrder = []Class{NotReplicated, Approximated, GivenDNS, Exact, NoDecision}

func (r *Report) sort() {
	slices.SortStableFunc(r.Items, func(a, b Item) int {
		return cmp.Or(
			cmp.Compare(slices.Index(classOrder, a.Class), slices.Index(classOrder, b.Class)),
			cmp.Compare(a.Parameter, b.Parameter), cmp.Compare(a.Element, b.Element), cmp.Compare(a.Why, b.Why))
	})
}

// Count returns how many items are of a class.
func (r *Report) Count(c Class) int {
	n := 0
	for _, it := range r.Items {
		if it.Class == c {
			n++
		}
	}
	return n
}

// headings introduce each class of items to the operator.
var headings = map[Class]string{
	NotReplicated: "Not replicated",
	Approximated:  "Approximated",
	GivenDNS:      "The same, given the same DNS answers",
	Exact:         "Exact",
	NoDecision:    "Without a part in decisions",
}

// Print writes the report for a person.
func (r *Report) Print(w io.Writer) error {
	fmt.Fprintf(w, "Postfix %s, compatibility_level %s, service %s\n", r.MailVersion, r.CompatibilityLevel, r.Service)
	for _, s := range r.Warnings {
		fmt.Fprintf(w, "warning: %s\n", s)
	}
	for _, c := range classOrder {
		if r.Count(c) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s (%d)\n", headings[c], r.Count(c))
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, it := range r.Items {
			if it.Class == c {
				fmt.Fprintf(tw, "  %s\t%s\n", it.Parameter, strings.Join(it.columns(), "\t"))
			}
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// columns are what Print shows beside the parameter.
func (it Item) columns() []string {
	const width = 60
	element := strings.Join(strings.Fields(it.Element), " ")
	if r := []rune(element); len(r) > width {
		element = string(r[:width-1]) + "…"
	}
	cols := []string{element}
	text := it.Why
	if it.Instead != "" {
		text += "; instead: " + it.Instead
	}
	if len(it.Options) > 1 {
		text += " (or: " + strings.Join(it.Options[1:], ", ") + ")"
	}
	if text != "" {
		cols = append(cols, strings.TrimPrefix(text, "; "))
	}
	return cols
}

// unknownChoices returns the choices that no item offers.
func unknownChoices(choices map[string]string, r *Report) []string {
	var unknown []string
	for id := range choices {
		if !slices.ContainsFunc(r.Items, func(it Item) bool { return it.ID() == id && len(it.Options) > 1 }) {
			unknown = append(unknown, id)
		}
	}
	slices.Sort(unknown)
	return unknown
}
