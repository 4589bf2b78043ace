package policysync

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// LastChange says when the content of a policy changed last, and in what.
type LastChange struct {
	At       time.Time `json:"at"`
	From     uint64    `json:"from"`     // version before, 0: there was none
	To       uint64    `json:"to"`       // version that brought it
	Compared bool      `json:"compared"` // false: what is below isn't known
	Added    uint64    `json:"added"`    // recipients
	Removed  uint64    `json:"removed"`
	Tables   []string  `json:"tables,omitempty"` // that differ, at most maxChangedTables
	Settings int       `json:"settings"`         // lines that only one of the two has
}

const maxChangedTables = 20

// changeOf describes the step from old (nil: none) to now. Contents that are
// hashed differently aren't compared: it would take seconds for millions.
func changeOf(old, now *version, at time.Time) LastChange {
	c := LastChange{At: at.UTC().Truncate(time.Second), To: now.head.Version}
	if old == nil {
		return c
	}
	c.From = old.head.Version
	if old.content == nil || !sameSecret(old.content.secret, now.content.secret) {
		return c
	}
	d, err := diff(old, now, 0)
	if err != nil {
		return c
	}
	c.Compared, c.Added, c.Removed, c.Settings = true, d.Added, d.Removed, len(d.Settings)
	c.Tables = d.Tables[:min(len(d.Tables), maxChangedTables)]
	return c
}

// changes are the last changes, the newest first; each belongs to a content.
// It holds two, because the file is written before the head: a crash between
// them leaves the content of the second in force.
type changes []contentChange

type contentChange struct {
	Digest string     `json:"digest"`
	Change LastChange `json:"change"`
}

func digestOf(h *Head) string {
	root := h.Root()
	return hex.EncodeToString(root[:])
}

// of returns the change that brought a head's content, nil when it isn't known.
func (c changes) of(h *Head) *LastChange {
	i := slices.IndexFunc(c, func(e contentChange) bool { return e.Digest == digestOf(h) })
	if i < 0 {
		return nil
	}
	return &c[i].Change
}

// after adds the step from old to now, unless their contents are the same.
func (c changes) after(old, now *version, at time.Time) changes {
	if old != nil && old.head.Root() == now.head.Root() {
		return c
	}
	return append(changes{{digestOf(now.head), changeOf(old, now, at)}}, c[:min(len(c), 1)]...)
}

const changesFile = "changes.json"

// loadChanges reads what saveChanges wrote. It is for the operator's eyes
// alone, so what is damaged counts as unknown.
func (s *store) loadChanges() (c changes) {
	b, err := s.fs.ReadFile(s.path(changesFile), 128<<10)
	if err != nil || json.Unmarshal(b, &c) != nil {
		return nil
	}
	return c
}

func (s *store) saveChanges(c changes) error {
	b, err := json.Marshal(c)
	if err == nil {
		err = replaceFile(s.fs, s.path(changesFile), b)
	}
	if err != nil {
		return fmt.Errorf("store last change: %w", err)
	}
	return nil
}

// Source is one of the sources that a publisher's policy is made of.
type Source struct {
	Name    string    `json:"name"`
	Read    time.Time `json:"read"`              // last without a mistake, zero: not since the publisher started
	Failing bool      `json:"failing,omitempty"` // the last reading had one
}

// Bounds of what a publisher tells about its sources.
const (
	maxSources     = 256
	maxSourcesJSON = 64 << 10
	maxSourceName  = 64
)

// sourcesAnswer is the body of the answer to POST /v1/report?sources.
type sourcesAnswer struct {
	Sources []Source `json:"sources"`
}

// parseSources reads it, "" from a publisher that doesn't know of it. Unknown
// fields are for later.
func parseSources(b []byte) ([]Source, error) {
	if len(b) == 0 {
		return nil, nil
	}
	var a sourcesAnswer
	err := json.Unmarshal(b, &a)
	if err == nil && len(a.Sources) > maxSources {
		err = errors.New("there are too many")
	}
	if err != nil {
		return nil, alarm(AlarmProtocol, "the primary's list of its sources: %w", err)
	}
	for i := range a.Sources {
		a.Sources[i].Name = clipText(a.Sources[i].Name, maxSourceName)
	}
	return a.Sources, nil
}

// oldestRead is when all of the sources were read, zero when one never was.
func oldestRead(list []Source) time.Time {
	if len(list) == 0 {
		return time.Time{}
	}
	return slices.MinFunc(list, func(a, b Source) int { return a.Read.Compare(b.Read) }).Read
}
