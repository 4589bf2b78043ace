package policysync

import (
	"net/http"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
)

// TestLastChange: both ends say when the content changed last and in what,
// across restarts, and nothing else makes a change.
func TestLastChange(t *testing.T) {
	p := newTestPublisher(t)
	dir := p.join(t, "mx2")
	f := p.follow(t, dir, "example.org")
	same := func(want LastChange, when string) {
		t.Helper()
		want.At = p.clock.now().UTC().Truncate(time.Second)
		again := p.follow(t, dir, "example.org")
		late, err := OpenPublisher(PublisherOptions{Dir: p.o.Dir, Metrics: newMetrics(), now: p.clock.now})
		if err != nil {
			t.Fatal(err)
		}
		if err := late.Restore(); err != nil {
			t.Fatal(err)
		}
		for who, got := range map[string]*LastChange{"the follower": f.Status().LastChange, "the publisher": p.Status().LastChange,
			"the follower after a restart": again.Status().LastChange, "the publisher after a restart": late.Status().LastChange} {
			if diff := cmp.Diff(&want, got); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", when, who, diff)
			}
		}
		if got := f.stats().Changed; !got.Equal(want.At) {
			t.Errorf("%s: the metric says %v, want %v", when, got, want.At)
		}
	}
	publish := func(s *policy.Spec) {
		t.Helper()
		p.publish(t, s)
		poll(t, f)
	}
	publish(newSpec(t, []string{"example.org"}, "a@example.org", "b@example.org"))
	same(LastChange{To: 1}, "the first version")
	p.clock.add(time.Minute)
	s := newSpec(t, []string{"example.org"}, "b@example.org", "c@example.org", "d@example.org")
	s.HeloRequired = true
	publish(s)
	second := LastChange{From: 1, To: 2, Compared: true, Added: 2, Removed: 1, Tables: []string{"recipients"}, Settings: 2}
	same(second, "a change")
	p.hash(true) // another version, of other keys: it isn't compared
	p.clock.add(time.Minute)
	publish(s)
	if got := f.Status().LastChange; got == nil || got.Compared || got.From != 2 || got.To != 3 {
		t.Errorf("hashing began: %+v", got)
	}
	second.At = p.clock.now().Add(-time.Minute).UTC().Truncate(time.Second)
	if diff := cmp.Diff(&second, p.Status().LastChange); diff != "" { // what it publishes is as it was
		t.Errorf("hashing began: the publisher (-want +got):\n%s", diff)
	}
	p.clock.add(time.Minute)
	publish(newSpec(t, []string{"example.org"}, "b@example.org", "c@example.org", "d@example.org", "e@example.org"))
	want := &LastChange{From: 3, To: 4, Compared: true, Added: 1, Tables: []string{"recipients"}, Settings: 2, At: p.clock.now().UTC().Truncate(time.Second)}
	if diff := cmp.Diff(want, f.Status().LastChange); diff != "" {
		t.Errorf("hashed (-want +got):\n%s", diff)
	}
	write(t, path.Join(dir, "store", changesFile), []byte("{"))
	if again := p.follow(t, dir, "example.org"); again.Status().LastChange != nil || again.Status().Version != 4 {
		t.Errorf("a damaged file: %+v", again.Status())
	}
}

// TestSources: the follower learns when each source was read, and is content
// with a publisher that doesn't tell.
func TestSources(t *testing.T) {
	p := newTestPublisher(t)
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	read := p.clock.now().UTC().Truncate(time.Second)
	p.SetSources([]Source{{Name: "postfix", Read: read}, {Name: "users\x1b[2J\n" + strings.Repeat("x", 100), Read: read.Add(-time.Hour), Failing: true}, {Name: "never"}})
	poll(t, f)
	want := []Source{{Name: "postfix", Read: read}, {Name: ("users [2J " + strings.Repeat("x", 100))[:64], Read: read.Add(-time.Hour), Failing: true}, {Name: "never"}}
	if diff := cmp.Diff(want, f.Status().Sources); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := f.stats().SourcesRead; !got.IsZero() {
		t.Errorf("all were read at %v, though one never was", got)
	}
	if b, err := f.http.post(t.Context(), "/v1/report", Report{}, 1024); err != nil || len(b) > 0 {
		t.Errorf("a follower that doesn't ask is told %q: %v", b, err)
	}

	e := newEvil(t)
	old := e.follower(t, newSpec(t, []string{"example.org"}, "a@example.org")) // its primary answers 204
	if got := old.Status().Sources; got != nil {
		t.Errorf("a publisher that tells nothing: %+v", got)
	}
	for _, tt := range []struct {
		name, body string
		want       Alarm
	}{
		{"no JSON", "{", AlarmProtocol},
		{"no list", `{"sources":1}`, AlarmProtocol},
		{"no time", `{"sources":[{"name":"a","read":"yesterday"}]}`, AlarmProtocol},
		{"too many", `{"sources":[` + strings.Repeat("{},", maxSources) + `{}]}`, AlarmProtocol},
		{"too long", `{"sources":[{"name":"` + strings.Repeat("a", 1<<20) + `"}]}`, AlarmProtocol},
		{"a field of a later program", `{"sources":[{"name":"a","size":1}],"more":2}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e.respond(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v1/report" {
					_, _ = w.Write([]byte(tt.body))
				}
			})
			if got := alarmOf(old.report(t.Context(), nil), ""); got != tt.want {
				t.Errorf("alarm %q, want %q", got, tt.want)
			}
		})
	}
}
