package postfix

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// Bounds of what is learned from a table: the recipients that strangers write
// may be any number.
const (
	maxThere  = 1_000_000
	maxAbsent = 100_000
	maxAsk    = 10_000 // keys in one import
)

// Answer is what a table said about a key.
type Answer struct {
	There bool      `json:"there,omitempty"`
	Since time.Time `json:"since"` // it says so
	Asked time.Time `json:"asked"` // last
}

// Learned is what tables that can't be listed have answered, by the table's
// name and the key. It ages as verify(8)'s cache does, by the same parameters:
// an answer is asked for again after address_verify_*_refresh_time, whether or
// not anybody wants it; "yes" is forgotten when no look-up has confirmed it for
// address_verify_positive_expire_time, "no" when it is
// address_verify_negative_expire_time old. Unlike a failed probe, "no" replaces
// "yes": a table's answer is definite.
type Learned struct {
	Tables map[string]map[string]Answer `json:"tables"`
}

// learnedTable is a table that an import learns.
type learnedTable struct {
	parameter, name string
	listed          *Table // what of it can be listed, or nil
	reason          error  // why it can't be listed at all
}

// ages are verify(8)'s.
type ages struct{ positiveRefresh, positiveExpire, negativeRefresh, negativeExpire time.Duration }

// learnable says that postmap can ask tables of a type, and that they answer
// the same twice.
func learnable(typ string) bool {
	return notListed[typ] == "" || slices.Contains([]string{"nis", "nisplus", "netinfo", "tcp", "socketmap", "memcache"}, typ)
}

// wholeKeys says that Postfix asks the table for addresses and names as they
// are, never for their parts.
func wholeKeys(name string) bool {
	return strings.HasPrefix(name, "tcp:") || strings.HasPrefix(name, "socketmap:")
}

// learns says that a table of recipients is to be learned by look-ups.
func (i *importer) learns(name string, t *Table, reason error) bool {
	typ, _, named := strings.Cut(name, ":")
	if i.src.Learned == nil || !named || !learnable(typ) {
		return false
	}
	if t != nil {
		return reason == nil && t.Partial != ""
	}
	return reason != nil && !errors.Is(reason, errSearchOrder)
}

// learn asks the learned tables for what isn't known yet or too old, and puts
// what they hold into the Spec.
func (i *importer) learn() {
	if len(i.learned) == 0 || len(i.errs) > 0 {
		return
	}
	a := i.ages()
	now := time.Now()
	i.src.Learned.forget(a, now, i.learned)
	i.fillLearned()
	snap, err := policy.Compile(i.spec)
	if err != nil || len(i.errs) > 0 {
		return // the caller compiles, too, and says what is wrong
	}
	unasked := snap.Unasked(i.src.Ask)
	for n, l := range i.learned {
		if slices.ContainsFunc(i.learned[:n], func(o learnedTable) bool { return o.name == l.name }) {
			continue // asked for another parameter
		}
		keys := append(unasked[specName(l.name)], i.src.Learned.due(l.name, a, now)...)
		i.polled[l.name] = true
		if err := i.ask(l, keys, now); err != nil {
			i.errorf("%s: table %s: %w", l.parameter, l.name, err)
		}
	}
	i.fillLearned()
	for _, l := range i.learned {
		there, absent := i.src.Learned.count(l.name)
		why := ""
		if l.reason != nil {
			why = l.reason.Error()
		} else {
			why = l.listed.Partial
		}
		i.item(l.parameter, l.name, fidelity.Approximated, fmt.Sprintf("%s; learned: %d keys are there, %d aren't", why, there, absent),
			"unknown recipients are answered 450 until the table has been asked about them")
	}
}

// fillLearned puts the answers into the Spec.
func (i *importer) fillLearned() {
	for _, l := range i.learned {
		t := &Table{Kind: Indexed, Entries: map[string]string{}}
		absent := &Table{Kind: Indexed, Entries: map[string]string{}}
		for key, a := range i.src.Learned.Tables[l.name] {
			if a.There {
				t.Entries[key] = ""
			} else {
				absent.Entries[key] = ""
			}
		}
		if l.listed != nil {
			for key := range l.listed.Entries {
				t.Entries[key] = ""
			}
		}
		name := specName(l.name)
		for key, t := range map[string]*Table{name: t, name + "#absent": absent} {
			pt, err := t.spec(false)
			if err != nil {
				i.errorf("%s: table %s: %w", l.parameter, l.name, err)
			}
			i.spec.Tables[key] = pt
		}
		i.spec.Learned[name] = policy.Learned{Absent: name + "#absent", Whole: wholeKeys(name) && (l.listed == nil || !l.listed.Parts)}
	}
}

// ask looks keys up through postmap and notes the answers. Without a key it
// only finds out whether the table answers.
func (i *importer) ask(l learnedTable, keys []string, now time.Time) error {
	slices.Sort(keys)
	keys = slices.DeleteFunc(slices.Compact(keys), func(k string) bool { return strings.ContainsAny(k, "\t\r\n\x00") })
	keys = keys[:min(len(keys), maxAsk)]
	asked := keys
	if len(keys) == 0 {
		asked = []string{"postmaster"}
	}
	args := []string{"-q", "-", l.name}
	if i.src.ConfigDir != "" {
		args = append([]string{"-c", i.src.ConfigDir}, args...)
	}
	found := map[string]bool{}
	if err := i.lookUp(args, asked, func(line string) {
		key, _, _ := strings.Cut(line, "\t")
		found[key] = true
	}); err != nil {
		return err
	}
	i.src.Learned.note(l.name, keys, found, now)
	return nil
}

// lookUp runs postmap where Postfix's daemons run: a socket's name may be
// relative to the queue directory. When nothing is found postmap fails, too, but
// then it says nothing.
func (i *importer) lookUp(args, keys []string, line func(string)) error {
	p := host.Program{
		Argv: append([]string{cmp.Or(i.src.Postmap, "postmap")}, args...),
		Dir:  i.set["queue_directory"], Stdin: strings.Join(keys, "\n") + "\n",
	}
	stderr, err := run(i.ctx, i.src.Host, p, func(l string) error { line(l); return nil })
	var exit *host.ExitError
	if errors.As(err, &exit) && exit.Status == 1 && !strings.Contains(stderr, "fatal: ") {
		return nil
	}
	return err
}

func (i *importer) ages() ages {
	t := func(name, unit string) time.Duration {
		d, err := parseAge(i.set[name], unit)
		if err != nil {
			i.errorf("%s: %w", name, err)
		}
		return d
	}
	a := ages{t("address_verify_positive_refresh_time", "d"), t("address_verify_positive_expire_time", "d"),
		t("address_verify_negative_refresh_time", "h"), t("address_verify_negative_expire_time", "d")}
	if i.set["address_verify_negative_cache"] == "no" {
		a.negativeExpire = 0
	}
	return a
}

// parseAge reads a time of main.cf, which may do without its unit.
func parseAge(s, usual string) (time.Duration, error) {
	units := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}
	digits := strings.TrimRight(s, "smhdw")
	n, err := strconv.Atoi(digits)
	unit, known := units[cmp.Or(s[len(digits):], usual)]
	if err != nil || !known || n < 0 || n > 100_000 {
		return 0, fmt.Errorf("%q is no time", s)
	}
	return time.Duration(n) * unit, nil
}

// forget drops what is too old, and tables that are no longer learned.
func (l *Learned) forget(a ages, now time.Time, tables []learnedTable) {
	for name, answers := range l.Tables {
		if !slices.ContainsFunc(tables, func(t learnedTable) bool { return t.name == name }) {
			delete(l.Tables, name)
		}
		for key, an := range answers {
			if an.There && now.Sub(an.Asked) >= a.positiveExpire || !an.There && now.Sub(an.Since) >= a.negativeExpire {
				delete(answers, key)
			}
		}
	}
}

// due are the keys whose answers are to be asked for again.
func (l *Learned) due(table string, a ages, now time.Time) (keys []string) {
	for key, an := range l.Tables[table] {
		refresh := a.negativeRefresh
		if an.There {
			refresh = a.positiveRefresh
		}
		if now.Sub(an.Asked) >= refresh {
			keys = append(keys, key)
		}
	}
	return keys
}

// note keeps the answers, as long as there is room for their kind.
func (l *Learned) note(table string, keys []string, found map[string]bool, now time.Time) {
	if l.Tables == nil {
		l.Tables = map[string]map[string]Answer{}
	}
	answers := l.Tables[table]
	if answers == nil {
		answers = map[string]Answer{}
		l.Tables[table] = answers
	}
	there, absent := l.count(table)
	for _, k := range keys {
		old, known := answers[k]
		switch {
		case known && old.There == found[k]:
			answers[k] = Answer{old.There, old.Since, now}
		case found[k] && there < maxThere:
			answers[k] = Answer{true, now, now}
			there++
		case !found[k] && absent < maxAbsent:
			answers[k] = Answer{false, now, now}
			absent++
		default:
			delete(answers, k)
		}
	}
}

func (l *Learned) count(table string) (there, absent int) {
	for _, a := range l.Tables[table] {
		if a.There {
			there++
		} else {
			absent++
		}
	}
	return there, absent
}
