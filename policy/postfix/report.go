package postfix

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
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
	// Who would be accepted is asked about at RCPT of the live primary, and gets
	// its refusal. If it can't be asked: deferred, or else as the name says.
	optAsk           = "ask"
	optAskElseIgnore = "ask-else-ignore"
	optAskElseSoften = "ask-else-soften" // and refusals that follow are softened, as with optSoften
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
	Remedy    string   `json:"remedy,omitempty"`  // what the operator can do about it, beside choosing an option
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
	NoDecision:    "Without a part in decisions",
}

// Print writes the report for a person: what needs attention item by item with
// its remedies, the rest a line for each parameter.
func (r *Report) Print(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "Postfix %s, compatibility_level %s, service %s\n", r.MailVersion, r.CompatibilityLevel, r.Service)
	for _, s := range r.Warnings {
		fmt.Fprintf(b, "warning: %s\n", s)
	}
	for _, c := range classOrder {
		if r.Count(c) == 0 {
			continue
		}
		fmt.Fprintf(b, "\n%s (%d)\n", headings[c], r.Count(c))
		for items := r.of(c); len(items) > 0; {
			n := 1
			for n < len(items) && items[n].Parameter == items[0].Parameter && (c == Exact || c == GivenDNS || items[n].alike(items[0])) {
				n++
			}
			if c == Exact || c == GivenDNS {
				printLine(b, items[:n])
			} else {
				printBlock(b, items[:n])
			}
			items = items[n:]
		}
	}
	return b.Flush()
}

// of returns the items of a class.
func (r *Report) of(c Class) (items []Item) {
	for _, it := range r.Items {
		if it.Class == c {
			items = append(items, it)
		}
	}
	return items
}

// alike says that there is the same to say about both.
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

// printBlock shows items that aren't replicated as they are, about which there
// is the same to say.
func printBlock(w io.Writer, items []Item) {
	for _, it := range items {
		fmt.Fprintf(w, "  %s\n", oneLine(it.ID()))
	}
	it := items[0]
	fmt.Fprintf(w, "      %s\n", it.Why)
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
