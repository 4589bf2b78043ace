// Package pushed keeps lists of recipients that somebody else pushes: one list for
// each domain, from a primary that can't be read, such as Microsoft 365.
//
// A list is a text file that every reader of addresses understands:
//
//	# understudy list, sha256 5d41…
//	alice@example.org
//	bob@example.org
//
// It appears under its name only when it is whole and on the disk, so readers see the
// old list or the new one, after a crash, too. Each has an ETag, the SHA-256 of its
// lines, which whoever pushes can compute as well.
//
// A list that deletes too much is staged: it takes effect, but nobody of that domain
// is unknown for good (P3) until the operator has decided. A publisher's lists aren't:
// its secondaries stage deletions. A list that nobody has confirmed for too long makes
// nobody unknown for good either. Readers tell by a file beside the list, DOMAIN.unsure.
package pushed

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// The files of a domain, by their endings.
const (
	listFile   = ".list"
	unsureFile = ".unsure" // there while unknown recipients are to be put off
	stateFile  = ".json"
	heldFile   = ".held" // the list before a staged deletion
	baseFile   = ".base" // the list of one to two windows ago
	nextFile   = ".next" // that takes its place
)

// ListName and UnsureName are the names of a domain's files for readers.
func ListName(domain string) string   { return domain + listFile }
func UnsureName(domain string) string { return domain + unsureFile }

// What a deletion may take before it is staged, as for a policy from the primary
// (sync/guard.go): half of a list, or more than one in a hundred and more than
// minDeletion, within a window.
const (
	minDeletion = 100
	deletionPct = 1
	window      = 7 * 24 * time.Hour
)

// overlap is how long the token before stays good after a rotation.
const overlap = 7 * 24 * time.Hour

// MaxChange bounds the addresses that one Change names.
const MaxChange = 100_000

// Errors for callers that branch.
var (
	ErrUnknown  = errors.New("no such domain")
	ErrBusy     = errors.New("another list of this domain is being stored")
	ErrETag     = errors.New("the list is not the one that If-Match names")
	ErrRejected = errors.New("the operator has rejected this list")
	ErrTooLong  = errors.New("the list has too many addresses")
	ErrContent  = errors.New("the list is refused")
)

// Limits say which lists there may be. They may change while a store is in use.
type Limits struct {
	Domains    []string // lower case; lists of others are refused
	MaxEntries int      // of a list
	StaleAfter time.Duration
}

// Options say where lists are and what they may be.
type Options struct {
	Dir string
	Limits
	Unguarded bool             // mass deletions aren't staged here: whoever follows the lists does it
	Now       func() time.Time // nil: time.Now
	disk      disk             // nil: the real one
}

// Store owns a directory of lists.
type Store struct {
	o    Options // but for Limits
	open atomic.Pointer[shelf]
}

// shelf has the lists that may be pushed now. It is never changed.
type shelf struct {
	Limits
	lists map[string]*list
}

// list returns a domain's, nil if there may be none.
func (s *Store) list(domain string) *list { return s.open.Load().lists[domain] }

// MaxEntries is the most that a list may have.
func (s *Store) MaxEntries() int { return s.open.Load().MaxEntries }

// list is one domain's.
type list struct {
	store  *Store
	domain string
	writes sync.Mutex // one change at a time

	mu    sync.Mutex // guards what follows
	state state
}

// state is what DOMAIN.json has. The list's file says which list is in force.
type state struct {
	Token    string    `json:"token,omitempty"`  // SHA-256 of it, hexadecimal
	Former   string    `json:"former,omitempty"` // of the token before a rotation, good
	Until    time.Time `json:"until,omitzero"`   // then
	ETag     string    `json:"etag,omitempty"`
	Count    int       `json:"count"`
	Pushed   time.Time `json:"pushed,omitzero"`  // or confirmed, last
	Changed  time.Time `json:"changed,omitzero"` // last
	Staged   *Staged   `json:"staged,omitempty"`
	Rejected string    `json:"rejected,omitempty"` // ETag of a list that the operator refused
	BaseAt   time.Time `json:"base_at,omitzero"`
	NextAt   time.Time `json:"next_at,omitzero"`
}

// Staged is a deletion that waits for the operator.
type Staged struct {
	Removed int       `json:"removed"` // within the window
	Of      int       `json:"of"`
	Since   time.Time `json:"since"`
}

// Status tells an operator of a list.
type Status struct {
	Domain  string    `json:"domain"`
	Token   bool      `json:"token"`           // there is one
	Former  time.Time `json:"former,omitzero"` // when the token before it ends, if it is still good
	ETag    string    `json:"etag,omitempty"`
	Count   int       `json:"count"`
	Pushed  time.Time `json:"pushed,omitzero"`
	Changed time.Time `json:"changed,omitzero"`
	Stale   bool      `json:"stale"` // unknown recipients are put off
	Staged  *Staged   `json:"staged,omitempty"`
}

// Open opens the store, and makes its directory. What a crash left behind is removed.
func Open(o Options) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.disk == nil {
		o.disk = osDisk{}
	}
	s := &Store{o: o}
	s.open.Store(&shelf{})
	if err := o.disk.MkdirAll(o.Dir); err != nil {
		return nil, err
	}
	if err := o.disk.RemoveTemps(o.Dir); err != nil {
		return nil, err
	}
	return s, s.Limit(o.Limits)
}

// Limit puts other limits in force, or none of them if a list can't be read. A domain
// that is taken out keeps its files; what is being pushed to it may still end well. It
// isn't called twice at a time.
func (s *Store) Limit(to Limits) error {
	next := &shelf{to, map[string]*list{}}
	for _, d := range to.Domains {
		l := s.list(d)
		if l == nil {
			l = &list{store: s, domain: d}
			if err := l.load(); err != nil {
				return err
			}
		}
		next.lists[d] = l
	}
	s.open.Store(next)
	return s.Tick()
}

func (l *list) path(ending string) string { return filepath.Join(l.store.o.Dir, l.domain+ending) }

// load reads the state, and ends what a crash has cut short. The list's own file has
// the last word on which list is in force.
func (l *list) load() error {
	b, err := l.store.o.disk.ReadFile(l.path(stateFile))
	if err == nil {
		err = json.Unmarshal(b, &l.state)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w; remove it, and make a new token", l.path(stateFile), err)
	}
	etag, n, err := l.sum(listFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	st := l.state
	if st.Staged != nil {
		if held, _, err := l.sum(heldFile); err == nil && held == etag { // the deletion hadn't come in, or was undone
			st.Staged = nil
		}
	}
	if st.ETag != etag {
		st.ETag, st.Count = etag, n
	}
	if st != l.state {
		return l.commit(st)
	}
	return l.letGo(st)
}

// Tick marks the lists that nobody confirmed for too long. It is called now and then.
func (s *Store) Tick() error {
	var errs []error
	for _, l := range s.open.Load().lists {
		l.writes.Lock()
		errs = append(errs, l.mark(l.get()))
		l.writes.Unlock()
	}
	return errors.Join(errs...)
}

// mark makes the file that tells readers what st means to unknown recipients agree
// with st. The caller holds writes.
func (l *list) mark(st state) error {
	d := l.store.o.disk
	there, err := d.Exists(l.path(unsureFile))
	unsure := st.Staged != nil || l.stale(st)
	switch {
	case err != nil || there == unsure || st.ETag == "" && !there:
		return err
	case unsure:
		return l.place(unsureFile, []byte("unknown recipients are put off: the list is stale, or a deletion waits for the operator\n"))
	}
	return errors.Join(d.Remove(l.path(unsureFile)), d.SyncDir(l.store.o.Dir))
}

func (l *list) stale(st state) bool {
	return st.ETag != "" && l.store.o.Now().Sub(st.Pushed) > l.store.open.Load().StaleAfter
}

func (l *list) get() state {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// put makes a state durable, and then ours.
func (l *list) put(st state) error {
	b, err := json.Marshal(&st)
	if err == nil {
		err = l.place(stateFile, b)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = st
	return nil
}

// commit makes a state durable, and then what follows from it.
func (l *list) commit(st state) error {
	if err := l.put(st); err != nil {
		return err
	}
	if err := l.letGo(st); err != nil {
		return err
	}
	return l.mark(st)
}

// letGo removes the list before a deletion that isn't staged any more.
func (l *list) letGo(st state) error {
	if st.Staged != nil {
		return nil
	}
	return l.store.o.disk.Remove(l.path(heldFile))
}

// Status returns the lists by domain.
func (s *Store) Status() []Status {
	var all []Status
	lists := s.open.Load().lists
	for _, d := range slices.Sorted(maps.Keys(lists)) {
		l := lists[d]
		st := l.get()
		all = append(all, Status{Domain: d, Token: st.Token != "", Former: l.former(st), ETag: st.ETag, Count: st.Count, Pushed: st.Pushed, Changed: st.Changed, Stale: l.stale(st), Staged: st.Staged})
	}
	return all
}

// One returns the state of one list.
func (s *Store) One(domain string) (Status, error) {
	for _, st := range s.Status() {
		if st.Domain == domain {
			return st, nil
		}
	}
	return Status{}, ErrUnknown
}

// NewToken makes the token with which a domain's list is pushed. The one before ends
// now or, if it is to be rotated, after overlap.
func (s *Store) NewToken(domain string, rotate bool) (string, error) {
	b := make([]byte, 32)
	rand.Read(b)
	token := base64.RawURLEncoding.EncodeToString(b)
	return token, s.edit(domain, func(st *state) {
		former, until := "", time.Time{}
		if rotate && st.Token != "" {
			former, until = st.Token, s.o.Now().Add(overlap).UTC().Truncate(time.Second)
		}
		st.Token, st.Former, st.Until = digest(token), former, until
	})
}

// RevokeToken ends a domain's token, and the one before; its list stays. former ends
// the one before only.
func (s *Store) RevokeToken(domain string, former bool) error {
	return s.edit(domain, func(st *state) {
		st.Former, st.Until = "", time.Time{}
		if !former {
			st.Token = ""
		}
	})
}

// edit changes a domain's state.
func (s *Store) edit(domain string, change func(*state)) error {
	l := s.list(domain)
	if l == nil {
		return fmt.Errorf("%s is not in domains under [push], or wasn't when the configuration was read (systemctl reload has it read again): %w", domain, ErrUnknown)
	}
	l.writes.Lock()
	defer l.writes.Unlock()
	st := l.get()
	change(&st)
	return l.put(st)
}

func digest(token string) string {
	h := sha256.Sum256([]byte(token))
	return hex.EncodeToString(h[:])
}

// former is when the token before ends; zero: there is none that is good.
func (l *list) former(st state) time.Time {
	if st.Former == "" || !l.store.o.Now().Before(st.Until) {
		return time.Time{}
	}
	return st.Until
}

// Allowed says whether token is the domain's. It takes as long for a domain that
// isn't ours.
func (s *Store) Allowed(domain, token string) bool {
	want := [2]string{digest(""), digest("")} // of no token
	l := s.list(domain)
	if l != nil {
		st := l.get()
		if st.Token != "" {
			want[0] = st.Token
		}
		if !l.former(st).IsZero() {
			want[1] = st.Former
		}
	}
	got, same := []byte(digest(token)), 0
	for _, w := range want {
		same |= subtle.ConstantTimeCompare(got, []byte(w))
	}
	return same == 1 && token != "" && l != nil
}

// Address checks and folds an address of domain.
func Address(text, domain string) (string, error) {
	at := strings.LastIndexByte(text, '@')
	switch {
	case len(text) > 320:
		return "", fmt.Errorf("%w: %.60q… is longer than any address", ErrContent, text)
	case at <= 0:
		return "", fmt.Errorf("%w: %.80q is no address; a catch-all belongs in the policy file", ErrContent, text)
	case !strings.EqualFold(text[at+1:], domain):
		return "", fmt.Errorf("%w: %.80q is not in %s", ErrContent, text, domain)
	}
	folded := strings.ToLower(text)
	if envelope.PlainLocal(text[:at]) {
		return folded, nil
	}
	m, err := envelope.ParseMailbox(text)
	if err != nil || m.String() != text || len(m.Local) > 64 || strings.ContainsFunc(text, envelope.Unseen) ||
		strings.HasPrefix(text, "#") || len(folded) > 320 {
		return "", fmt.Errorf("%w: %.80q is no address as a list can have it", ErrContent, text)
	}
	return folded, nil
}
