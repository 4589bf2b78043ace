package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy/table"
)

// Corners of an ACL that sessions of a real Exim don't reach.

// TestUnquote: strings of an Exim's configuration, as Exim 4.96 reads them.
func TestUnquote(t *testing.T) {
	for s, want := range map[string]string{
		`plain "x"`: `plain "x"`, `"a b"`: "a b", `"`: `"`, `""`: "", `"a\"b" c`: `a"b`, `"\n\t\r\b\f\v"`: "\n\t\r\b\f\v", `"\101\1012\x41\x4g"`: "AA2A\x04g",
		`"\q\\"`: `q\`, `"a\`: `a\`, `"\60\8"`: "08", `"x`: "x",
	} {
		if got := Unquote(s); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
	for s, want := range map[string]string{
		"": "", "  ": "", " a  b\tc ": "a|b|c", `name "two words" "q\"q" x`: `name|two words|q"q|x`, "1 2 3 4 5 6 7 8 9 10 11": "1|2|3|4|5|6|7|8|9|10", `"open a`: "open a",
	} {
		if got := strings.Join(ACLWords(s), "|"); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}

// TestCheckACLVerify: what a verify condition may say.
func TestCheckACLVerify(t *testing.T) {
	for arg, good := range map[string]bool{
		"helo": true, "HELO ": true, "helo/x": false, "helo/": false, "sender": true, "sender/no_details/defer_ok": true, "sender/callout": false, "sender/callout=ask": false,
		"recipient": true, "recipient/success_on_redirect": true, "recipient/callout=defer": true, "recipient/callout=30s": false, "recipient/callout=ask_else_ignore/defer_ok": true,
		"recipient / Defer_OK": true, "header_syntax": true, "header_syntax/defer_ok": false, "not_blind/case_insensitive": true, "sender/case_insensitive": false,
		"certificate": true, "csa": false, "": false,
	} {
		if err := CheckACLVerify(arg); (err == nil) != good {
			t.Errorf("verify = %s: %v", arg, err)
		}
	}
}

// TestACLMistakes: a policy that names what isn't there isn't one.
func TestACLMistakes(t *testing.T) {
	for what, spoil := range map[string]func(*ACL){
		"no stage is called":        func(a *ACL) { a.Stages["vrfy"] = "rcpt" },
		"no list is called":         func(a *ACL) { a.Stages["mail"] = "none" },
		"unknown verb":              func(a *ACL) { a.Lists["rcpt"][0].Verb = "allow" },
		"unknown condition":         func(a *ACL) { a.Lists["rcpt"][0].Items[0].Kind = "domain" },
		"is none of defer":          func(a *ACL) { a.Lists["rcpt"][0].Items[0] = ACLCondition{Kind: "unknown", Arg: "ignore"} },
		"sets no variable":          func(a *ACL) { a.Lists["rcpt"][0].Items[0] = ACLCondition{Kind: "set", Arg: "domain=x"} },
		"verify = everything":       func(a *ACL) { a.Lists["rcpt"][0].Items[0] = ACLCondition{Kind: "verify", Arg: "everything"} },
		"acl.lists.rcpt.0: message": func(a *ACL) { a.Lists["rcpt"][0].Items[0] = ACLCondition{Kind: "message", Arg: "${lc:"} },
		"acl.domainlists.x":         func(a *ACL) { a.Domains = map[string]string{"x": "${lc:"} },
		"acl.helo_verify_hosts":     func(a *ACL) { a.HeloVerify = "${lc:" },
		"unknown driver":            func(a *ACL) { a.Routers[0].Driver = "iplookup" },
		"acl.routers.r.data":        func(a *ACL) { a.Routers[0].Options = map[string]string{"data": "${lc:"} },
		"acl.routers.r.route_list":  func(a *ACL) { a.Routers[0].Options = map[string]string{"route_list": "a b ; ${lc: x"} },
		"no router is called":       func(a *ACL) { a.Routers[0].Options = map[string]string{"pass_router": "s"} },
		"acl.files.wildlsearch;/f":  func(a *ACL) { a.Files = map[string][]string{"wildlsearch;/f": {"a", "x", "${lc:", "y"}} },
		"acl.users":                 func(a *ACL) { a.Users = "passwd" },
	} {
		s := NewSpec()
		s.ACL = &ACL{
			Stages: map[string]string{"rcpt": "rcpt"}, Routers: []ACLRouter{{Name: "r", Driver: "redirect"}},
			Lists: map[string][]ACLStatement{"rcpt": {{Verb: "accept", Items: []ACLCondition{{Kind: "domains", Arg: "x.example"}}}}},
		}
		if _, err := Compile(s); err != nil {
			t.Fatal(err)
		}
		spoil(s.ACL)
		if _, err := Compile(s); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// aclSessionOf is a session with an ACL for recipients, and tables.
func aclSessionOf(t *testing.T, statements []ACLStatement, more func(*Spec)) *Session {
	t.Helper()
	s := NewSpec()
	s.ACL = &ACL{Hostname: "mx.test", Stages: map[string]string{"rcpt": "rcpt"}, Lists: map[string][]ACLStatement{"rcpt": statements}}
	if more != nil {
		more(s)
	}
	snap, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	se := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1")})
	t.Cleanup(se.Close)
	se.Mail(t.Context(), envelope.ReversePath{}, MailParams{})
	return se
}

func aclRcpt(t *testing.T, s *Session, local, domain string) Verdict {
	return s.Rcpt(t.Context(), envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: local, Domain: domain}})
}

// TestUnknownConditions: what the operator chose in place of a condition never lets in, nor
// turns away for good, whom the condition would decide about.
func TestUnknownConditions(t *testing.T) {
	rest := []ACLStatement{{Verb: "accept", Items: []ACLCondition{{Kind: "local_parts", Arg: "alice"}}}}
	for _, tt := range []struct {
		verb, choice string
		local        string
		want         Action
		ask          string
	}{
		{"deny", "defer", "alice", Defer, ""}, {"deny", "ask", "alice", Permit, kindAsk}, {"deny", "ask_else_ignore", "alice", Permit, kindAskElseIgnore},
		{"accept", "defer", "bob", Defer, ""}, {"accept", "ask", "bob", Reject, ""}, {"require", "defer", "alice", Defer, ""}, {"require", "ask", "alice", Permit, kindAsk},
		{"require", "ask", "bob", Reject, ""}, {"warn", "defer", "alice", Permit, ""},
	} {
		s := aclSessionOf(t, append([]ACLStatement{{Verb: tt.verb, Items: []ACLCondition{{Kind: "unknown", Arg: tt.choice}}}}, rest...), nil)
		v := aclRcpt(t, s, tt.local, "x.example")
		if v.Action != tt.want || v.Ask.Kind != tt.ask {
			t.Errorf("%s unknown = %s: %s is %s, ask %q; want %s, %q", tt.verb, tt.choice, tt.local, v.Action, v.Ask.Kind, tt.want, tt.ask)
		}
	}
}

// TestDeepLists: a list that calls itself ends, and lets nobody in.
func TestDeepLists(t *testing.T) {
	for depth, want := range map[int]Action{20: Permit, 21: Defer} {
		s := aclSessionOf(t, nil, func(s *Spec) {
			s.ACL.Lists["rcpt"] = []ACLStatement{{Verb: "accept", Items: []ACLCondition{{Kind: "acl", Arg: "a2"}}}}
			for n := 2; n <= depth; n++ {
				name := "a" + string(rune('0'+n/10)) + string(rune('0'+n%10))
				next := "a" + string(rune('0'+(n+1)/10)) + string(rune('0'+(n+1)%10))
				statement := ACLStatement{Verb: "accept", Items: []ACLCondition{{Kind: "acl", Arg: next}}}
				if n == depth {
					statement.Items = nil
				}
				s.ACL.Lists[name] = []ACLStatement{statement}
			}
			s.ACL.Lists["rcpt"][0].Items[0].Arg = "a02"
		})
		if v := aclRcpt(t, s, "a", "x.example"); v.Action != want {
			t.Errorf("%d lists: %s", depth, v.Action)
		}
	}
}

// TestInTables: tables that stand for a database's queries.
func TestInTables(t *testing.T) {
	hash := func(kv ...string) *table.Table {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[ExactKey(kv[i])] = kv[i+1]
		}
		h, err := table.NewHash(m)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	const sep = KeySeparator
	for _, tt := range []struct {
		in          TableLookup
		tables, key string
		want        string
	}{
		{TableLookup{Exact: true}, "one", "a", "1"}, {TableLookup{Exact: true}, "one", "A", "capital"}, {TableLookup{}, "one", "A", "1"},
		{TableLookup{Exact: true}, "one", "b", "none"}, {TableLookup{Exact: true, Default: "0"}, "one", "b", "0"},
		{TableLookup{Exact: true}, "one two", "a" + sep + "a", "1\n2"}, {TableLookup{Exact: true}, "one one", "a" + sep + "a", "1"},
		{TableLookup{Exact: true}, "two three", "a" + sep + "a", "2\n2"}, {TableLookup{Exact: true, Distinct: true}, "two three", "a" + sep + "a", "2"},
		{TableLookup{Exact: true}, "one two", "a", "waits"}, {TableLookup{Exact: true}, "one", "a" + sep + "a", "waits"}, {TableLookup{Exact: true}, "gone", "a", "waits"},
		{TableLookup{Exact: true, Plain: true}, "one", "a'", "waits"}, {TableLookup{Exact: true, Plain: true}, "one", `a\`, "waits"}, {TableLookup{Exact: true}, "one", "a'", "quoted"},
		{TableLookup{Exact: true, Missed: true}, "one", "a'", "none"}, {TableLookup{Exact: true, Fill: 2}, "fill", "a" + sep + "x" + sep + "y", "<y and x>"},
	} {
		s := aclSessionOf(t, []ACLStatement{{Verb: "deny", Items: []ACLCondition{{Kind: "message", Arg: "${lookup{$local_part}" + tt.in.String() + "{" + tt.tables + "}{$value}{none}}"}}}}, func(s *Spec) {
			s.Tables = map[string]*table.Table{"one": hash("a", "1", "A", "capital", "a'", "quoted"), "two": hash("a", "2"), "three": hash("a", "2"), "fill": hash("a", "<"+FillMark(1)+" and "+FillMark(0)+">")}
		})
		if got := parseTableLookup(tt.in.String()); got != tt.in {
			t.Errorf("%s: %+v", tt.in, got)
		}
		r := s.aclRun(t.Context(), Rcpt)
		got, found, err := r.inTables(tt.in.String(), tt.tables, tt.key)
		switch {
		case err != nil:
			got = "waits"
		case !found:
			got = "none"
		}
		if got != tt.want {
			t.Errorf("%s in %s of %q: %q, want %q", tt.in, tt.tables, tt.key, got, tt.want)
		}
	}
}
