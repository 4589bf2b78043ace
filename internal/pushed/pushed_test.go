package pushed

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/syndtr/goleveldb/leveldb/storage"

	"github.com/understudy-mx/understudy/internal/testmx"
)

const domain = "example.org"

// clock is a time that tests move.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func open(t *testing.T, dir string, c *clock, d disk) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, Limits: Limits{Domains: []string{domain}, MaxEntries: 1000, StaleAfter: time.Hour}, Now: c.now, disk: d})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func users(from, to int) (list []string) {
	for i := from; i < to; i++ {
		list = append(list, fmt.Sprintf("u%04d@example.org", i))
	}
	return list
}

func put(s *Store, list ...string) (Result, error) {
	return s.Replace(domain, "", func(add func(string) error) error {
		for _, a := range list {
			if err := add(a); err != nil {
				return err
			}
		}
		return nil
	})
}

// inForce reads a list as a policy does.
func inForce(t *testing.T, dir string) (list []string, unsure bool) {
	t.Helper()
	return inForceOn(t, osDisk{}, dir)
}

func inForceOn(t *testing.T, d disk, dir string) (list []string, unsure bool) {
	t.Helper()
	f, err := d.Open(filepath.Join(dir, ListName(domain)))
	if errors.Is(err, os.ErrNotExist) {
		return nil, false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v, err := Verify(ListName(domain), f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(v)
	if err != nil {
		t.Fatal(err)
	}
	unsure, err = d.Exists(filepath.Join(dir, UnsureName(domain)))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b)), unsure
}

func TestReplace(t *testing.T) {
	dir, c := filepath.Join(t.TempDir(), "new"), &clock{time.Unix(1e9, 0)}
	s := open(t, dir, c, nil)
	if i, err := os.Stat(dir); err != nil || i.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", i, err)
	}
	r, err := put(s, "Bob@Example.org", "alice@example.org", "bob@example.org", `"a,b"@example.org`)
	want := []string{`"a,b"@example.org`, "alice@example.org", "bob@example.org"}
	if err != nil || !r.Changed || r.Count != 3 || r.ETag != ETag(want) {
		t.Fatalf("got %+v, %v; want ETag %s", r, err, ETag(want))
	}
	b, _ := os.ReadFile(filepath.Join(dir, "example.org.list"))
	if got := strings.Split(strings.TrimSpace(string(b)), "\n")[1:]; !slices.Equal(got, want) {
		t.Errorf("the file has %q", got)
	}
	r, err = put(s, "alice@example.org", "bob@example.org", `"a,b"@example.org`)
	if err != nil || r.Changed {
		t.Errorf("the same list again: %+v, %v", r, err)
	}
	if r, err = s.Change(domain, r.ETag, []string{"carol@example.org", "aa@example.org", "zed@example.org"}, []string{"bob@example.org", "nobody@example.org"}); err != nil {
		t.Fatal(err)
	}
	if got, unsure := inForce(t, dir); strings.Join(got, " ") != `"a,b"@example.org aa@example.org alice@example.org carol@example.org zed@example.org` || unsure {
		t.Errorf("after a change: %q, %v", got, unsure)
	}
	if _, err = s.Change(domain, ETag(want), nil, nil); !errors.Is(err, ErrETag) {
		t.Errorf("a change of an old list: %v", err)
	}
	if _, err = s.Change(domain, "", users(0, 1), nil); !errors.Is(err, ErrETag) {
		t.Errorf("a change of any list: %v", err)
	}
	var last []string
	for i := range 996 {
		last = append(last, fmt.Sprintf("zz%04d@example.org", i))
	}
	for _, added := range [][]string{users(0, 996), last} {
		if _, err = s.Change(domain, r.ETag, added, nil); !errors.Is(err, ErrTooLong) {
			t.Errorf("a change to 1001 of 1000: %v", err)
		}
	}
	if _, err := put(s); !errors.Is(err, ErrContent) {
		t.Errorf("an empty list: %v", err)
	}
	if _, err := s.Change(domain, r.ETag, nil, strings.Fields(`"a,b"@example.org aa@example.org alice@example.org carol@example.org zed@example.org`)); !errors.Is(err, ErrContent) {
		t.Errorf("a change to an empty list: %v", err)
	}
	again := open(t, dir, c, nil)
	if st, err := again.One(domain); err != nil || st.ETag != r.ETag || st.Count != 5 {
		t.Errorf("after a restart: %+v, %v", st, err)
	}
}

// TestBusy: a list that comes while another one of its domain is read is refused, and
// takes no place in a line.
func TestBusy(t *testing.T) {
	s := open(t, t.TempDir(), &clock{time.Unix(1e9, 0)}, nil)
	_, err := s.Replace(domain, "", func(add func(string) error) error {
		second := make(chan error, 1)
		go func() {
			_, err := put(s, users(0, 2)...)
			second <- err
		}()
		select {
		case err := <-second:
			if !errors.Is(err, ErrBusy) {
				t.Errorf("the second: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the second waits")
		}
		return add("a@example.org")
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAddress(t *testing.T) {
	long := strings.Repeat("d", 60) + "." + strings.Repeat("d", 60) + "." + strings.Repeat("d", 60) + "." + strings.Repeat("d", 60) + ".example"
	a := strings.Repeat("a", 64)
	for _, tt := range []struct {
		text, domain string
		want         bool
	}{
		{a + "@example.org", domain, true},
		{"a" + a + "@example.org", domain, false},
		{`"` + a[:63] + `,"@example.org`, domain, true},
		{`"` + a[:64] + `,"@example.org`, domain, false},
		{strings.Repeat("é", 32) + "@example.org", domain, true},
		{strings.Repeat("é", 32) + "a@example.org", domain, false},
		{a + "@" + long, long, true},
		{strings.Repeat("\u023a", 32) + "@" + long, long, false}, // in lower case each has three octets
		{`"a\b"@example.org`, domain, false},                     // it isn't how that is written
		{"#@example.org", domain, false},
		{"@example.org", domain, false},
		{strings.Repeat("a", 400) + "@example.org", domain, false},
		{"example.org", domain, false},
	} {
		if got, err := Address(tt.text, tt.domain); (err == nil) != tt.want {
			t.Errorf("%q: %q, %v", tt.text, got, err)
		}
	}
}

// TestSorted has lists that are longer than a run.
func TestSorted(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir, Limits: Limits{Domains: []string{domain}, MaxEntries: 250_000, StaleAfter: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for i := range 150_000 {
		list = append(list, fmt.Sprintf("somebody.with.a.long.name.%06d@example.org", i))
	}
	want := ETag(list)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	runs := 0
	r, err := s.Replace(domain, "", func(add func(string) error) (err error) {
		for _, a := range append(list, list[:50_000]...) {
			err = errors.Join(err, add(a))
		}
		temps, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
		runs = len(temps) - 1 // and the list
		return err
	})
	if runs != 2 {
		t.Errorf("%d runs of 8.8 MB of addresses are on the disk, each of 4 MiB", runs)
	}
	if err != nil || r.ETag != want || r.Count != 150_000 {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := put(s, append(list, list[:100_001]...)...); !errors.Is(err, ErrTooLong) {
		t.Errorf("a list that is too long: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); len(left) > 0 {
		t.Errorf("temporary files are left: %q", left)
	}
}

func TestMassDeletion(t *testing.T) {
	for _, tt := range []struct {
		name        string
		before      int
		after       []string
		staged      int // removed, 0: not staged
		removedFrom int
	}{
		{"one of three", 3, users(1, 3), 0, 3},
		{"two of four", 4, users(2, 4), 2, 4},
		{"half and others came", 10, append(users(5, 10), users(20, 40)...), 5, 10},
		{"a hundred of 900", 900, users(100, 900), 0, 900},
		{"101 of 900", 900, users(101, 900), 101, 900},
		{"one in a hundred", 10_100, users(101, 10_100), 0, 10_100},
		{"more than one in a hundred", 10_099, users(101, 10_099), 101, 10_099},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
			s := open(t, dir, c, nil)
			if err := s.Limit(Limits{[]string{domain}, 20_000, time.Hour}); err != nil {
				t.Fatal(err)
			}
			if _, err := put(s, users(0, tt.before)...); err != nil {
				t.Fatal(err)
			}
			r, err := put(s, tt.after...)
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			if r.Staged != nil {
				got = r.Staged.Removed
			}
			if list, unsure := inForce(t, dir); got != tt.staged || unsure != (tt.staged > 0) || len(list) != len(tt.after) {
				t.Errorf("staged %d, unsure %v, %d in force", got, unsure, len(list))
			}
		})
	}
}

// TestStagedStays: a deletion that is pushed again, or with a change, waits all the same, also
// where the list of a window ago hadn't those who are deleted yet.
func TestStagedStays(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
	s := open(t, dir, c, nil)
	for _, n := range []int{10, 210} {
		if r, err := put(s, users(0, n)...); err != nil || r.Staged != nil {
			t.Fatal(r, err)
		}
	}
	for _, n := range []int{10, 10, 11, 12} {
		r, err := put(s, users(0, n)...)
		if _, unsure := inForce(t, dir); err != nil || r.Staged == nil || r.Staged.Removed != 210-n || !unsure {
			t.Errorf("%d of 210 are left: %+v, %v, unsure %v", n, r.Staged, err, unsure)
		}
		c.at = c.at.Add(time.Minute)
	}
}

// TestSlices removes a list in slices, each of which is small.
func TestSlices(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
	s := open(t, dir, c, nil)
	if _, err := put(s, users(0, 1000)...); err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		c.at = c.at.Add(time.Hour)
		r, err := put(s, users(n*30, 1000)...)
		if err != nil {
			t.Fatal(err)
		}
		if r.Staged != nil {
			if n != 4 {
				t.Errorf("staged after %d slices of 30, want 4 (120 > 100)", n)
			}
			break
		}
		if n == 20 {
			t.Fatal("600 recipients are gone in slices, and nothing was staged")
		}
	}
	if err := s.Approve(domain); err != nil {
		t.Fatal(err)
	}
	// From then on it is counted anew, and what is older than two weeks is forgotten.
	for n := 5; n < 8; n++ {
		c.at = c.at.Add(8 * 24 * time.Hour)
		if r, err := put(s, users(n*30, 1000)...); err != nil || r.Staged != nil {
			t.Errorf("slice %d: %+v, %v", n, r, err)
		}
	}
}

// TestWindow: deletions are summed up over one to two weeks, whatever else happens.
func TestWindow(t *testing.T) {
	type step struct {
		day, gone int
		staged    bool
	}
	slow := []step{{8, 30, false}, {16, 60, false}, {24, 90, false}, {32, 120, false}, {40, 150, false}, {48, 180, false}}
	for name, tt := range map[string]struct{ steps, rejected []step }{
		"slowly":                          {steps: append([]step{{0, 0, false}, {0, 1, false}}, slow...)},
		"the clock was wrong":             {steps: append([]step{{40_000, 0, false}, {0, 1, false}}, slow...)},
		"the clock was wrong, and few go": {steps: []step{{40_000, 0, false}, {40_000, 60, false}, {0, 61, false}, {1, 130, false}}},
		"one to two weeks":                {steps: []step{{0, 0, false}, {0, 1, false}, {6, 60, false}, {7, 61, false}, {8, 101, true}}},
		"more than two weeks":             {steps: []step{{0, 0, false}, {0, 1, false}, {6, 60, false}, {7, 61, false}, {14, 62, false}, {15, 110, false}}},
		"staged for weeks":                {[]step{{0, 0, false}, {0, 1, false}, {1, 60, false}, {8, 900, true}, {16, 901, true}}, []step{{16, 101, true}}},
		"staged, and few go then":         {[]step{{0, 0, false}, {0, 1, false}, {8, 900, true}}, []step{{9, 60, false}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &clock{time.Unix(1e9, 0)}
			s := open(t, t.TempDir(), c, nil)
			play := func(steps []step) {
				for _, p := range steps {
					c.at = time.Unix(1e9, 0).Add(time.Duration(p.day) * 24 * time.Hour)
					if r, err := put(s, users(p.gone, 1000)...); err != nil || (r.Staged != nil) != p.staged {
						t.Errorf("%+v: %+v, %v", p, r.Staged, err)
					}
				}
			}
			play(tt.steps)
			if tt.rejected != nil {
				if err := s.Reject(domain); err != nil {
					t.Fatal(err)
				}
				play(tt.rejected)
			}
		})
	}
}

// TestWindowCut: where the power fails while the sum begins anew, or one operation does
// and perhaps the power some operations later, nothing of it is lost.
func TestWindowCut(t *testing.T) {
	for _, later := range []int{0, 3, 4, 1000} {
		windowCut(t, later)
	}
}

func windowCut(t *testing.T, later int) {
	for n := 1; ; n++ {
		c := &clock{time.Unix(1e9, 0)}
		disk := testmx.NewDisk()
		s := open(t, memoryDir, c, &memory{Disk: disk})
		for _, gone := range []int{0, 1, 60} {
			if r, err := put(s, users(gone, 1000)...); err != nil || r.Staged != nil {
				t.Fatal(r, err)
			}
		}
		c.at = c.at.Add(window)
		ops := 0
		disk.Fault(func(op testmx.Op) error {
			if ops++; ops == n || ops >= n+later {
				return errors.New("the disk is gone")
			}
			return nil
		})
		_, err := put(s, users(61, 1000)...)
		left, at := disk.Cut(testmx.LeftAll, nil), c.at
		s = open(t, memoryDir, c, &memory{Disk: left.Clone(), temps: 1000})
		for _, gone := range []int{61, 62} {
			if _, err := put(s, users(gone, 1000)...); err != nil {
				t.Fatalf("cut at %d, %d later, %v after it: %v", n, later, c.at.Sub(at), err)
			}
			c.at = c.at.Add(window)
		}
		c.at = at
		s = open(t, memoryDir, c, &memory{Disk: left, temps: 1000})
		for _, gone := range []int{61, 101} {
			if r, err := put(s, users(gone, 1000)...); err != nil || (r.Staged != nil) != (gone > 100) {
				t.Fatalf("cut at %d, %d later, %d are gone: %+v, %v", n, later, gone, r.Staged, err)
			}
		}
		if err == nil && ops < n {
			return
		}
	}
}

func TestDecide(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
	s := open(t, dir, c, nil)
	if err := s.Approve(domain); !errors.Is(err, errNothing) {
		t.Errorf("approve nothing: %v", err)
	}
	if err := errors.Join(s.Approve("example.net"), s.Reject("example.net")); !errors.Is(err, ErrUnknown) {
		t.Errorf("of another domain: %v", err)
	}
	all, few := users(0, 10), users(0, 3)
	for _, list := range [][]string{all, few} {
		if _, err := put(s, list...); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, c, nil) // it outlives a restart
	if _, unsure := inForce(t, dir); !unsure {
		t.Error("the restart has let the deletion in")
	}
	if err := s.Reject(domain); err != nil {
		t.Fatal(err)
	}
	if got, unsure := inForce(t, dir); !slices.Equal(got, all) || unsure {
		t.Errorf("after reject: %d, unsure %v", len(got), unsure)
	}
	if _, err := put(s, few...); !errors.Is(err, ErrRejected) {
		t.Errorf("the rejected list again: %v", err)
	}
	if r, err := put(s, few[:2]...); err != nil || r.Staged == nil {
		t.Errorf("another such list: %+v, %v", r, err)
	}
	if r, err := put(s, users(0, 9)...); err != nil || r.Staged != nil {
		t.Errorf("they are back: %+v, %v", r, err)
	}
	if got, unsure := inForce(t, dir); len(got) != 9 || unsure {
		t.Errorf("they are back: %d, unsure %v", len(got), unsure)
	}
	staged := c.at
	for i, list := range [][]string{users(0, 4), few} { // of two one after the other, the first says when and from what
		r, err := put(s, list...)
		if err != nil || r.Staged == nil || r.Staged.Removed != 10-len(list) || r.Staged.Of != 10 || !r.Staged.Since.Equal(staged) {
			t.Fatalf("staged once more: %d: %+v, %v", i, r.Staged, err)
		}
		c.at = c.at.Add(time.Minute)
	}
	if err := s.Reject(domain); err != nil {
		t.Fatal(err)
	}
	if got, unsure := inForce(t, dir); len(got) != 9 || unsure {
		t.Errorf("the second of two rejected: %d, unsure %v", len(got), unsure)
	}
	few = few[:2]
	if r, err := put(s, few...); err != nil || r.Staged == nil {
		t.Fatalf("and again: %+v, %v", r, err)
	}
	if err := s.Approve(domain); err != nil {
		t.Fatal(err)
	}
	if got, unsure := inForce(t, dir); len(got) != 2 || unsure {
		t.Errorf("after approve: %d, unsure %v", len(got), unsure)
	}
}

func TestStale(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
	s := open(t, dir, c, nil)
	tick := func(after time.Duration) bool {
		c.at = c.at.Add(after)
		if err := s.Tick(); err != nil {
			t.Fatal(err)
		}
		_, unsure := inForce(t, dir)
		return unsure
	}
	if _, err := put(s, users(0, 3)...); err != nil {
		t.Fatal(err)
	}
	if tick(time.Hour) || !tick(time.Second) {
		t.Error("the list must be stale after an hour, not before")
	}
	if r, err := put(s, users(0, 3)...); err != nil || r.Changed || tick(0) {
		t.Errorf("a confirmation: %+v, %v", r, err)
	}
	if !tick(2 * time.Hour) {
		t.Error("stale once more")
	}
}

func TestTokens(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
	s := open(t, dir, c, nil)
	if s.Allowed(domain, "") || s.Allowed(domain, "x") {
		t.Error("allowed without a token")
	}
	first, err := s.NewToken(domain, false)
	if err != nil || !s.Allowed(domain, first) || s.Allowed("example.net", first) || s.Allowed("Example.org", first) {
		t.Errorf("token %q: %v", first, err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "example.org.json")); strings.Contains(string(b), first) || !strings.Contains(string(b), digest(first)) {
		t.Errorf("the disk has %s", b)
	}
	second, err := s.NewToken(domain, false)
	if err != nil || s.Allowed(domain, first) || !open(t, dir, c, nil).Allowed(domain, second) {
		t.Errorf("second token: %v", err)
	}
	if err := s.RevokeToken(domain, false); err != nil || s.Allowed(domain, second) {
		t.Errorf("revoked: %v", err)
	}
	if _, err := s.NewToken("example.net", false); !errors.Is(err, ErrUnknown) {
		t.Errorf("another domain: %v", err)
	}
}

// TestDomains: each domain has a token, a list and a state of its own.
func TestDomains(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	s, err := Open(Options{Dir: t.TempDir(), Limits: Limits{Domains: []string{domain, "example.com"}, MaxEntries: 10, StaleAfter: time.Hour}, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	token, err := s.NewToken(domain, false)
	if err != nil || s.Allowed("example.com", token) || s.Allowed("example.net", "") {
		t.Errorf("the token of one is another's, %v", err)
	}
	if _, err := put(s, users(0, 3)...); err != nil {
		t.Fatal(err)
	}
	for domain, count := range map[string]int{domain: 3, "example.com": 0} {
		if st, err := s.One(domain); err != nil || st.Domain != domain || st.Count != count || st.Token != (count > 0) {
			t.Errorf("%s: %+v, %v", domain, st, err)
		}
	}
	if _, err := s.One("example.net"); !errors.Is(err, ErrUnknown) {
		t.Errorf("of none: %v", err)
	}
}

// TestRotation: the token before stays good for a week, or until it is ended, and no
// other one does.
func TestRotation(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
	s := open(t, dir, c, nil)
	make := func(rotate bool) string {
		t.Helper()
		token, err := s.NewToken(domain, rotate)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	wants := func(why string, good []string, bad ...string) {
		t.Helper()
		for _, s := range []*Store{s, open(t, dir, c, nil)} { // in memory, and on the disk
			for _, token := range good {
				if !s.Allowed(domain, token) {
					t.Errorf("%s: %.4s… is refused", why, token)
				}
			}
			for _, token := range append(bad, "", digest("")) {
				if s.Allowed(domain, token) {
					t.Errorf("%s: %.4q… is allowed", why, token)
				}
			}
		}
	}
	first := make(true) // nothing to rotate
	wants("first", []string{first})
	second := make(true)
	wants("rotated", []string{first, second})
	if st := s.Status()[0]; !st.Former.Equal(c.at.Add(overlap)) {
		t.Errorf("status %+v", st)
	}
	third := make(true)
	wants("rotated again", []string{second, third}, first)
	c.at = c.at.Add(overlap - time.Second)
	wants("a week is nearly over", []string{second, third}, first)
	c.at = c.at.Add(time.Second)
	wants("a week is over", []string{third}, first, second)
	if st := s.Status()[0]; !st.Former.IsZero() {
		t.Errorf("status %+v", st)
	}
	fourth := make(true)
	if err := s.RevokeToken(domain, true); err != nil {
		t.Fatal(err)
	}
	wants("the one before is ended", []string{fourth}, third)
	fifth := make(true)
	if err := s.RevokeToken(domain, false); err != nil {
		t.Fatal(err)
	}
	wants("both are ended", nil, fourth, fifth)
	sixth := make(true)
	wants("after the end", []string{sixth}, fourth, fifth)
	wants("a new one without an overlap", []string{make(false)}, sixth)
}

// TestUnguarded: where somebody after us stages mass deletions, they take effect
// here, also one that was staged before.
func TestUnguarded(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
	s := open(t, dir, c, nil)
	for _, n := range []int{10, 2} {
		if _, err := put(s, users(0, n)...); err != nil {
			t.Fatal(err)
		}
	}
	if s.Status()[0].Staged == nil {
		t.Fatal("the deletion isn't staged")
	}
	s, err := Open(Options{Dir: dir, Limits: Limits{Domains: []string{domain}, MaxEntries: 1000, StaleAfter: 24 * time.Hour}, Now: c.now, Unguarded: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{2, 1} {
		r, err := put(s, users(0, n)...)
		if _, unsure := inForce(t, dir); err != nil || r.Staged != nil || unsure {
			t.Errorf("%d left: %+v, %v", n, r, err)
		}
	}
	if err := s.Approve(domain); err == nil {
		t.Error("there is something to approve")
	}
}

func TestDamaged(t *testing.T) {
	dir, c := t.TempDir(), &clock{time.Unix(1e9, 0)}
	if _, err := put(open(t, dir, c, nil), users(0, 5)...); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, ListName(domain))
	b, _ := os.ReadFile(name)
	for i := range b {
		bad := slices.Clone(b)
		bad[i] ^= 4
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(Options{Dir: dir, Limits: Limits{Domains: []string{domain}, MaxEntries: 10}}); err == nil {
			t.Fatalf("octet %d is damaged, and nobody minds", i)
		}
	}
}

// memory is a disk that may lose its power.
type memory struct {
	*testmx.Disk
	temps int
}

const memoryDir = "/lists"

func (m *memory) MkdirAll(dir string) error { return m.Mkdir(dir) }

func (m *memory) Create(dir string) (file, error) {
	m.temps++
	name := filepath.Join(dir, fmt.Sprint(tempPrefix, m.temps))
	w, err := m.Disk.Create(name)
	return &memoryFile{Writer: w, name: name}, err
}

func (m *memory) Open(name string) (io.ReadCloser, error) {
	r, _, err := m.Disk.Open(name)
	return r, err
}

func (m *memory) ReadFile(name string) ([]byte, error) {
	r, err := m.Open(name)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func (m *memory) Link(from, to string) error {
	return errors.Join(m.Remove(to), m.Disk.Link(from, to))
}

func (m *memory) Exists(name string) (bool, error) {
	_, err := m.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (m *memory) RemoveTemps(dir string) error {
	names, err := m.List(dir)
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			err = errors.Join(err, m.Remove(filepath.Join(dir, name)))
		}
	}
	return err
}

// memoryFile keeps what was written until it is synced or closed: a file of
// testmx.Disk only grows.
type memoryFile struct {
	storage.Writer
	name string
	buf  []byte
}

func (f *memoryFile) Name() string { return f.name }

func (f *memoryFile) Write(b []byte) (int, error) {
	f.buf = append(f.buf, b...)
	return len(b), nil
}

func (f *memoryFile) WriteAt(b []byte, at int64) (int, error) { return copy(f.buf[at:], b), nil }

func (f *memoryFile) flush() error {
	b := f.buf
	f.buf = nil
	if len(b) == 0 {
		return nil
	}
	_, err := f.Writer.Write(b)
	return err
}

func (f *memoryFile) Sync() error { return errors.Join(f.flush(), f.Writer.Sync()) }

func (f *memoryFile) Close() error { return errors.Join(f.flush(), f.Writer.Close()) }

// TestPowerCut ends the power at each operation of each kind of change. After it the
// list is the old one or the new one, never a mixture; the new one if the change was
// said to be done; and a mass deletion is never in force without its mark, unless the
// operator has approved it.
func TestPowerCut(t *testing.T) {
	all := users(0, 20)
	staged := func(s *Store) error { _, err := put(s, users(0, 5)...); return err }
	for _, tt := range []struct {
		name     string
		before   func(*Store) error // nil: all are in force
		after    time.Duration
		do       func(*Store) error
		next     []string
		approved bool
	}{
		{name: "small change", do: func(s *Store) error { _, err := put(s, users(0, 19)...); return err }, next: users(0, 19)},
		{name: "mass deletion", do: staged, next: users(0, 5)},
		{name: "difference", do: func(s *Store) error { _, err := s.Change(domain, ETag(all), users(20, 21), nil); return err }, next: users(0, 21)},
		{name: "back", before: staged, do: func(s *Store) error { _, err := put(s, all...); return err }, next: all},
		{name: "back after a week", before: staged, after: 2 * window, do: func(s *Store) error { _, err := put(s, all...); return err }, next: all},
		{name: "small change after a week", after: 2 * window, do: func(s *Store) error { _, err := put(s, users(0, 19)...); return err }, next: users(0, 19)},
		{name: "approve", before: staged, do: func(s *Store) error { return s.Approve(domain) }, next: users(0, 5), approved: true},
		{name: "reject", before: staged, do: func(s *Store) error { return s.Reject(domain) }, next: all},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &clock{time.Unix(1e9, 0)}
			open := func(m *memory) *Store {
				t.Helper()
				s, err := Open(Options{Dir: memoryDir, Limits: Limits{Domains: []string{domain}, MaxEntries: 1000, StaleAfter: 10 * window}, Now: c.now, disk: m})
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			first := testmx.NewDisk()
			s := open(&memory{Disk: first})
			if _, err := put(s, all...); err != nil {
				t.Fatal(err)
			}
			last := all
			if tt.before != nil {
				if err := tt.before(s); err != nil {
					t.Fatal(err)
				}
				last = users(0, 5)
			}
			c.at = c.at.Add(tt.after)
			for n := 1; ; n++ {
				disk := first.Clone()
				s := open(&memory{Disk: disk, temps: 1000})
				ops := 0
				disk.Fault(func(op testmx.Op) error {
					if op.Kind != testmx.OpOpen && op.Kind != testmx.OpRead && op.Kind != testmx.OpList {
						ops++
					}
					if ops >= n {
						return errors.New("the disk is gone")
					}
					return nil
				})
				err := tt.do(s)
				for i, left := range []testmx.Left{testmx.LeftNothing, testmx.LeftAll, testmx.LeftSome, testmx.LeftSome, testmx.LeftSome, testmx.LeftSome} {
					what := fmt.Sprintf("cut at %d, %d", n, i)
					after := &memory{Disk: disk.Cut(left, rand.New(rand.NewPCG(uint64(n), uint64(i)))), temps: 2000}
					open(after)
					again := open(after)
					list, unsure := inForceOn(t, after, memoryDir)
					isNew := slices.Equal(list, tt.next)
					switch {
					case !isNew && !slices.Equal(list, last):
						t.Fatalf("%s: %d recipients, neither list", what, len(list))
					case err == nil && !isNew:
						t.Fatalf("%s: said to be done, and isn't", what)
					case len(list) < 10 && !unsure && !tt.approved:
						t.Fatalf("%s: the mass deletion is in force", what)
					case unsure != (again.Status()[0].Staged != nil):
						t.Fatalf("%s: unsure %v, and %+v", what, unsure, again.Status()[0])
					}
					if tt.name == "reject" && isNew {
						if _, err := put(open(&memory{Disk: after.Clone(), temps: 3000}), last...); !errors.Is(err, ErrRejected) {
							t.Fatalf("%s: the rejected list again: %v", what, err)
						}
					}
					other := &memory{Disk: after.Clone(), temps: 3000}
					approved := open(other)
					next := [][]string{users(0, 1)}
					if approved.Approve(domain) == nil {
						next = [][]string{list, users(0, 1)}
					}
					for _, to := range next {
						r, err := put(approved, to...)
						if err != nil || (r.Staged != nil) != (len(to) == 1) {
							t.Fatalf("%s: approved, and then %d: %+v, %v", what, len(to), r, err)
						}
					}
					if err := approved.Reject(domain); err != nil {
						t.Fatalf("%s: %v", what, err)
					}
					if back, _ := inForceOn(t, other, memoryDir); !slices.Equal(back, list) {
						t.Fatalf("%s: %d are back, want %d", what, len(back), len(list))
					}
					if err := again.Reject(domain); unsure != (err == nil) {
						t.Fatalf("%s: unsure %v, rejected: %v", what, unsure, err)
					}
					if list, unsure = inForceOn(t, after, memoryDir); unsure || !tt.approved && len(list) < 10 {
						t.Fatalf("%s: rejected, and %d are in force, unsure %v", what, len(list), unsure)
					}
					if _, err := put(again, all...); err != nil {
						t.Fatalf("%s: nothing can be pushed any more: %v", what, err)
					}
					if list, unsure = inForceOn(t, after, memoryDir); len(list) != 20 || unsure {
						t.Fatalf("%s: after another push %d, unsure %v", what, len(list), unsure)
					}
					if names, _ := after.List(memoryDir); slices.ContainsFunc(names, func(s string) bool { return strings.HasPrefix(s, tempPrefix) }) {
						t.Fatalf("%s: temporary files are left: %q", what, names)
					}
				}
				if err == nil && ops < n {
					if n < 8 {
						t.Fatalf("only %d operations", n)
					}
					return
				}
			}
		})
	}
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"a@example.org", `"a b"@example.org`, "é@example.org", "@example.org", "a@b@example.org", "a\x00@example.org", "#a@example.org", "a@EXAMPLE.org", `"\"@example.org`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Address(s, domain)
		if err != nil {
			return
		}
		if strings.ContainsAny(a, "\r\n\x00\t") || !strings.HasSuffix(a, "@example.org") || len(a) > 320 || a[0] == '#' || a[0] == '@' {
			t.Errorf("%q became %q", s, a)
		}
		if b, err := Address(a, domain); err != nil || a != b {
			t.Errorf("%q became %q, and that %q, %v", s, a, b, err)
		}
	})
}
