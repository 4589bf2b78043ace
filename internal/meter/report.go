package meter

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/policy"
)

// maxFile bounds the file that is read: a full one has less than two megabytes.
const maxFile = 8 << 20

// Difference is one decision on which the two sides differ. Texts of peers are
// bounded and on one line.
type Difference struct {
	At      time.Time `json:"at"`
	Stage   string    `json:"stage"`
	Class   string    `json:"class"`
	Cause   string    `json:"cause"`
	Kind    string    `json:"rule_kind"` // of the snapshot's rule
	Rule    string    `json:"rule"`      // the same with its table and entry
	Ours    string    `json:"ours"`      // reply, or "permit", "hold", "discard"
	Primary string    `json:"primary"`   // reply
	Item    string    `json:"not_replicated,omitempty"`

	// SettledAfter is when a later policy agreed with the primary.
	SettledAfter *float64 `json:"settled_after_seconds,omitempty"`

	// None of these where recipients are hashed.
	Client    string `json:"client,omitempty"`
	Helo      string `json:"helo,omitempty"`
	Sender    string `json:"sender,omitempty"`
	Recipient string `json:"recipient,omitempty"`
}

// scrub takes out whom it is about.
func (d *Difference) scrub() {
	d.Client, d.Helo, d.Sender, d.Recipient = "", "", "", ""
	if f := strings.Fields(d.Rule); len(f) > 3 { // stage, kind, table; then the entry
		d.Rule = strings.Join(f[:3], " ")
	}
	d.Rule, d.Ours, d.Primary = mask(d.Rule), mask(d.Ours), mask(d.Primary)
}

// mask replaces what is in angle or square brackets, and words with an "@".
func mask(s string) string {
	var b strings.Builder
	for s != "" {
		open := strings.IndexAny(s, "<[")
		if open < 0 {
			break
		}
		b.WriteString(s[:open])
		end := strings.LastIndexAny(s, ">]")
		b.WriteString("<…>")
		s = s[max(end, open)+1:]
	}
	words := strings.Fields(b.String() + s)
	for i, w := range words {
		if strings.ContainsAny(w, "@") {
			words[i] = "<…>"
		}
	}
	return strings.Join(words, " ")
}

// Kind is one kind of difference.
type Kind struct {
	Stage  string     `json:"stage"`
	Rule   string     `json:"rule_kind"`
	Class  string     `json:"class"`
	Cause  string     `json:"cause"`
	Count  uint64     `json:"count"`
	Late   uint64     `json:"late"` // of these, those with which a later policy agreed
	Advice string     `json:"advice"`
	Last   Difference `json:"last"`
}

// Stage is the agreement at one stage.
type Stage struct {
	Stage     string `json:"stage"`
	Same      uint64 `json:"same"`
	Different uint64 `json:"different"`
}

// Report is what the meter shows.
type Report struct {
	Since     time.Time `json:"since"`
	Same      uint64    `json:"same"`
	Different uint64    `json:"different"`
	// Rate is Same by all, nil before the first decision. Unexplained are the last
	// day's differences of exact rules with which no later policy agreed, of those
	// that are kept.
	Rate        *float64 `json:"rate"`
	Unexplained uint64   `json:"unexplained"`
	Stages      []Stage  `json:"stages"`
	Kinds       []Kind   `json:"kinds"` // what needs the operator first

	Differences []Difference `json:"differences,omitempty"` // the last one first
}

// LogStatus is what has come of the primary's log since the start.
type LogStatus struct {
	Log        string    `json:"log"`             // a file, or "journal"
	Error      string    `json:"error,omitempty"` // why it can't be read
	Last       time.Time `json:"last,omitzero"`   // when the last line of Postfix came
	Sessions   uint64    `json:"sessions"`
	Judged     uint64    `json:"judged"`
	Undecided  uint64    `json:"undecided"` // the log doesn't have what a rule asks for
	Dropped    uint64    `json:"dropped"`   // too many at once
	Unreadable uint64    `json:"unreadable"`
}

// Report returns what was counted, with all differences that are kept if wanted.
func (m *Meter) Report(all bool) Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := Report{Since: m.since, Stages: []Stage{}, Kinds: []Kind{}}
	for at, c := range m.stages {
		if c.Same+c.Different > 0 {
			r.Stages = append(r.Stages, Stage{policy.Stage(at).String(), c.Same, c.Different})
		}
		r.Same += c.Same
		r.Different += c.Different
	}
	if n := r.Same + r.Different; n > 0 {
		rate := float64(r.Same) / float64(n)
		r.Rate = &rate
	}
	for _, k := range m.kinds {
		r.Kinds = append(r.Kinds, *k)
	}
	slices.SortFunc(r.Kinds, func(a, b Kind) int {
		return cmp.Or(cmp.Compare(slices.Index(Classes, a.Class), slices.Index(Classes, b.Class)), cmp.Compare(b.Count, a.Count),
			cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Cause, b.Cause))
	})
	lately := time.Now().Add(-24 * time.Hour)
	for _, e := range slices.Backward(m.ring) {
		if e.Class == Exact && e.At.After(lately) {
			r.Unexplained++
		}
		if all {
			r.Differences = append(r.Differences, e.Difference)
		}
	}
	return r
}

// file is what is kept on disk.
type file struct {
	Since       time.Time    `json:"since"`
	Stages      []Stage      `json:"stages"`
	Kinds       []Kind       `json:"kinds"`
	Differences []Difference `json:"differences"`
}

// Open goes on with what a file has. One that can't be read is put aside.
func Open(o Options, now time.Time) *Meter {
	m := &Meter{o: o, since: now.UTC().Truncate(time.Second), kinds: map[kindKey]*Kind{}}
	f, err := load(o.File)
	if errors.Is(err, fs.ErrNotExist) {
		return m
	}
	if err != nil {
		o.Log.Error("what was known of differences from the primary is lost; the file is put aside", "err", errors.Join(err, os.Rename(o.File, o.File+".damaged")))
		return m
	}
	m.since = f.Since
	for _, s := range f.Stages {
		for at := range m.stages {
			if policy.Stage(at).String() == s.Stage {
				m.stages[at] = count{s.Same, s.Different}
			}
		}
	}
	for _, k := range f.Kinds[:min(len(f.Kinds), maxKinds)] {
		k.Advice = advice[k.Cause]
		m.kinds[kindKey{k.Stage, k.Rule, k.Cause}] = &k
	}
	for _, d := range f.Differences[:min(len(f.Differences), maxDifferences)] {
		m.ring = append(m.ring, &entry{Difference: d})
	}
	if o.Hashed {
		m.scrub()
	}
	return m
}

func load(name string) (f file, err error) {
	r, err := os.Open(name)
	if err != nil {
		return f, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxFile))
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err == nil && f.Since.IsZero() {
		err = errors.New("it doesn't say since when it counts")
	}
	if err != nil {
		err = fmt.Errorf("read %s: %w", name, err)
	}
	return f, err
}

// Save writes down what is kept, if there is anything new.
func (m *Meter) Save() error {
	r := m.Report(false)
	m.mu.Lock()
	f := file{r.Since, r.Stages, r.Kinds, make([]Difference, 0, len(m.ring))}
	for _, e := range m.ring {
		f.Differences = append(f.Differences, e.Difference)
	}
	dirty := m.dirty
	m.dirty = false
	m.mu.Unlock()
	if !dirty {
		return nil
	}
	text, err := json.Marshal(f)
	if err == nil {
		err = service.ReplaceFile(m.o.File, text)
	}
	if err != nil {
		m.mu.Lock()
		m.dirty = true
		m.mu.Unlock()
	}
	return err
}
