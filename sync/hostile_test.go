package policysync

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"unicode"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// hostile are strings that do harm where they are shown as they are. Each
// holds the word evil.
var hostile = map[string]string{
	"terminal":   "evil\x1b[2J\x1b]0;title\a",
	"log line":   "evil\r\n{\"level\":\"ERROR\",\"msg\":\"forged\"}\nlevel=ERROR msg=forged",
	"NUL":        "evil\x00\x7f\b",
	"C1":         "evil\u009b31m\u0085",
	"bidi":       "evil\u202egro.elpmaxe\u2066",
	"separators": "evil\u2028\u2029\u200b",
	"no UTF-8":   "evil\xff\xfe\xc0\x80",
	"a megabyte": "evil" + strings.Repeat("a", 1<<20),
}

// shown wants every string of what an operator is given, as a value or as
// lines of a log, to be printable and short.
func shown(t *testing.T, what string, v any) {
	t.Helper()
	const most = settingsPiece
	var walk func(v any)
	text := func(s string) {
		bad := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
		if bad >= 0 || len(s) > most {
			t.Errorf("%s shows %d octets, %.200q", what, len(s), s[max(0, bad-20):])
		}
	}
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			text(v)
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for k, e := range v {
				text(k)
				walk(e)
			}
		}
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var any any
	if err := json.Unmarshal(b, &any); err != nil {
		t.Fatal(err)
	}
	walk(any)
}

// logged wants a log to be one of single objects, without a line of a peer's.
func logged(t *testing.T, log *bytes.Buffer) {
	t.Helper()
	for line := range bytes.Lines(log.Bytes()) {
		var entry map[string]any
		if err := json.Unmarshal(line, &entry); err != nil || entry["msg"] == "forged" {
			t.Errorf("a line of the log is %.200q: %v", line, err)
			continue
		}
		shown(t, "the log", entry)
	}
}

// TestHostilePrimary puts each hostile string into each field that a primary
// fills. It is refused with an alarm and the last good version stays, or it is
// shown harmless; what the operator sees and the log are looked at either way.
func TestHostilePrimary(t *testing.T) {
	rcpts := names(300, "example.org")
	table := func(t *testing.T, kind string, entries ...string) *table.Table {
		b, err := table.NewBuilder(kind, nil)
		for i := 0; i < len(entries) && err == nil; i += 2 {
			err = b.Add([]byte(entries[i]), []byte(entries[i+1]))
		}
		if err != nil {
			t.Fatal(err)
		}
		made, err := b.Table()
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	for _, field := range []struct {
		name    string
		refused Alarm // always, "": where it must be, or never
		spec    func(t *testing.T, s *policy.Spec, evil string)
		forge   func(f *forgery, evil string)
		head    func(h *Head, evil string)
		answer  func(w http.ResponseWriter, r *http.Request, evil string)
	}{
		{name: "the head's notice", head: func(h *Head, evil string) { h.Notice = evil }},
		{name: "a table's name", forge: func(f *forgery, evil string) { f.layout[1].name = evil }},
		{name: "a second table's name", spec: func(t *testing.T, s *policy.Spec, evil string) {
			s.Tables[evil[:min(len(evil), 255)]] = table(t, "set", "key", "")
		}},
		{name: "a table that isn't there", refused: AlarmPolicy, spec: func(_ *testing.T, s *policy.Spec, evil string) { s.Addresses.Relay.Recipients = []string{evil} }},
		{name: "a domain", refused: AlarmDomain, spec: func(_ *testing.T, s *policy.Spec, evil string) {
			s.Addresses.Relay.Domains = append(s.Addresses.Relay.Domains, evil)
		}},
		{name: "a pattern of domains", refused: AlarmDomain, spec: func(_ *testing.T, s *policy.Spec, evil string) { s.Addresses.Relay.Match = []string{evil} }},
		{name: "a restriction's kind", refused: AlarmPolicy, spec: func(_ *testing.T, s *policy.Spec, evil string) {
			s.Restrictions.Recipient = []policy.Restriction{{Kind: evil}}
		}},
		{name: "a restriction's argument", spec: func(_ *testing.T, s *policy.Spec, evil string) {
			s.Restrictions.Recipient = append(s.Restrictions.Recipient, policy.Restriction{Kind: "reject_rbl_client", Arg: evil})
		}},
		{name: "a field of the settings", refused: AlarmPolicy, forge: func(f *forgery, evil string) {
			b, _ := json.Marshal(map[string]int{evil[:min(len(evil), 1000)]: 1})
			f.settings(string(b))
		}},
		{name: "the settings", refused: AlarmPolicy, forge: func(f *forgery, evil string) { f.settings(evil[:min(len(evil), maxValue)]) }},
		{name: "a recipient", forge: func(f *forgery, evil string) { f.table(evil[:min(len(evil), maxKey-20)] + "@example.org") }},
		{name: "a recipient's domain", forge: func(f *forgery, evil string) { f.table("a@" + evil[:min(len(evil), maxKey-20)]) }},
		{name: "a reply", spec: func(t *testing.T, s *policy.Spec, evil string) {
			s.Tables["senders"] = table(t, "hash", "spam.example", "REJECT "+evil[:min(len(evil), maxValue-20)])
			s.Restrictions.Sender = []policy.Restriction{{Kind: "check_sender_access", Arg: "senders"}}
		}},
		{name: "a sender in an access table", spec: func(t *testing.T, s *policy.Spec, evil string) {
			s.Tables["senders"] = table(t, "hash", evil[:min(len(evil), maxKey-20)], "REJECT")
			s.Restrictions.Sender = []policy.Restriction{{Kind: "check_sender_access", Arg: "senders"}}
		}},
		{name: "a source's name", answer: func(w http.ResponseWriter, r *http.Request, evil string) {
			if r.URL.Path == "/v1/report" {
				writeJSON(w, sourcesAnswer{[]Source{{Name: evil}}})
			}
		}},
		{name: "the list of sources", refused: AlarmProtocol, answer: func(w http.ResponseWriter, r *http.Request, evil string) {
			if r.URL.Path == "/v1/report" {
				_, _ = io.WriteString(w, evil)
			}
		}},
		{name: "the head", refused: "any", answer: onHead2(func(w http.ResponseWriter, evil string) { _, _ = io.WriteString(w, evil) })},
		{name: "an HTTP header", refused: "any", answer: onHead2(func(w http.ResponseWriter, evil string) {
			w.Header().Set("Location", evil)
			w.WriteHeader(http.StatusFound)
		})},
		{name: "the body of a refusal", refused: AlarmRefused, answer: onHead2(func(w http.ResponseWriter, evil string) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, evil)
		})},
	} {
		for kind, evil := range hostile {
			t.Run(field.name+"/"+kind, func(t *testing.T) {
				var log bytes.Buffer
				e := newEvil(t)
				f := e.follower(t, newSpec(t, []string{"example.org"}, rcpts...))
				f.o.Log = slog.New(slog.NewJSONHandler(&log, nil))
				before := f.Current()
				spec := newSpec(t, []string{"example.org"}, append(rcpts, "new@example.org")...)
				if field.spec != nil {
					field.spec(t, spec, evil)
				}
				e.offer(t, e.forge(t, spec, func(fg *forgery) {
					if field.forge != nil {
						field.forge(fg, evil)
					}
				}), e.head(2, f.cur.head.identity), func(h *Head) {
					if field.head != nil {
						field.head(h, evil)
					}
				})
				if field.answer != nil {
					e.respond(func(w http.ResponseWriter, r *http.Request) { field.answer(w, r, evil) })
				}
				err := try(t, f)
				if a := alarmOf(err, ""); err != nil && a == "" || field.refused != "" && err == nil || field.refused != "" && field.refused != "any" && a != field.refused {
					t.Errorf("alarm %q, want %q: %v", a, field.refused, err)
				}
				if err != nil {
					if a := alarmOf(err, ""); f.Current() != before && a != AlarmProtocol && a != AlarmDomain { // what comes after the version is no reason to give it back
						t.Error("the version in force changed")
					}
					f.alarm(err, AlarmProtocol)
					f.lastErr = err
				}
				shown(t, "status", f.Status())
				shown(t, "counts", f.Counts())
				shown(t, "pending", f.Pending())
				if d, err := f.Diff(0, 0, 1000); err == nil {
					shown(t, "diff", d)
				}
				logged(t, &log)
			})
		}
	}
}

func onHead2(fn func(w http.ResponseWriter, evil string)) func(http.ResponseWriter, *http.Request, string) {
	return func(w http.ResponseWriter, r *http.Request, evil string) {
		if r.URL.Path == "/v1/head" {
			fn(w, evil)
		}
	}
}

// TestHostileFollower puts each hostile string into each field that a follower,
// a stranger or whoever makes an invitation fills.
func TestHostileFollower(t *testing.T) {
	var log bytes.Buffer
	p := newTestPublisher(t, func(o *PublisherOptions) { o.Log = slog.New(slog.NewJSONHandler(&log, nil)) })
	p.publish(t, newSpec(t, []string{"example.org"}, "a@example.org"))
	f := p.follow(t, p.join(t, "mx2"), "example.org")
	if err := f.report(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for kind, evil := range hostile {
		t.Run(kind, func(t *testing.T) {
			before := p.Peers()[0].Report.Digest
			for _, field := range []string{"digest", "state", "staged", "health.software", "health.problem", "unsure"} {
				body := map[string]any{field: evil}
				if name, ok := strings.CutPrefix(field, "health."); ok {
					body = map[string]any{"health": map[string]any{name: evil}}
				}
				if field == "unsure" {
					body = map[string]any{field: []string{evil}}
				}
				_, err := f.http.post(t.Context(), "/v1/report", body, 1024)
				if long := len(evil) > maxRequest; long != (err != nil) {
					t.Errorf("%s: %v", field, err)
				}
				shown(t, "peers, "+field, p.Peers())
				shown(t, "unsure", p.Unsure())
			}
			if len(evil) > maxRequest && p.Peers()[0].Report.Digest != before {
				t.Error("a report that is too long was taken")
			}
			for target, body := range map[string]any{"/v1/join": joinRequest{Invite: evil, Proof: []byte(evil)}, "/v1/key": map[string]string{"pin": evil}, "/v1/report": map[string]int{evil: 1}} {
				if _, err := f.http.post(t.Context(), target, body, 1024); err == nil {
					t.Errorf("%s is taken", target)
				} else {
					shown(t, target, clip(err.Error()))
				}
			}
			if _, err := p.Invite(evil); err == nil {
				t.Error("a peer may be called that")
			} else {
				shown(t, "invite", err.Error())
			}
			if err := p.Revoke(evil); err == nil {
				t.Error("somebody is called that")
			} else {
				shown(t, "revoke", err.Error())
			}
			for _, address := range []string{evil + ":1", "127.0.0.1:" + evil} {
				pasted := evil
				if len(address) < 256 {
					pasted = (&token{address: address}).String()
				}
				if _, err := Join(t.Context(), t.TempDir(), pasted); err == nil {
					t.Errorf("%q is joined", address)
				} else {
					shown(t, "join", err.Error())
				}
			}
			p.SetNotice(evil)
			p.SetSources([]Source{{Name: evil}})
			p.SetWrong([]string{evil})
			shown(t, "the publisher's status", p.Status())
			raw, err := f.http.head(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			h, err := openHead(raw, f.pair.keys())
			if err != nil {
				t.Fatal(err)
			}
			if f.cur == nil {
				err = f.install(t.Context(), nil, h, raw)
			} else {
				err = f.renew(h, raw)
			}
			if err = errors.Join(err, f.report(t.Context(), nil)); err != nil {
				t.Fatal(err)
			}
			if s := f.Status(); !strings.Contains(s.Notice, "evil") || len(s.Sources) != 1 {
				t.Errorf("the follower shows %+v", s)
			}
			shown(t, "status", f.Status())
		})
	}
	logged(t, &log)
	if log.Len() == 0 {
		t.Error("nothing was logged")
	}
	if got := p.Peers()[0].Name; got != "mx2" || len(p.Peers()) != 1 {
		t.Errorf("the peers are %+v", p.Peers())
	}
}
