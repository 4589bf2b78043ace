package postfix

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/testmx"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/table"
)

const sssd = "sss in nsswitch.conf need not list everybody"

// reader is an importer to which some tables are known.
func reader(set settings, tables map[string]*Table) *importer {
	i := &importer{
		ctx: context.Background(), src: &Source{}, set: set, spec: policy.NewSpec(),
		read: map[string]reading{}, files: map[string]bool{}, polled: map[string]bool{}, implied: map[string]string{},
	}
	i.spec.Tables = map[string]*table.Table{}
	i.spec.Learned = map[string]policy.Learned{}
	for name, t := range tables {
		i.read[name] = reading{table: t}
	}
	return i
}

func indexed(pairs ...string) *Table {
	t := &Table{Type: "hash", Kind: Indexed, Entries: map[string]string{}}
	for n := 0; n < len(pairs); n += 2 {
		t.Entries[pairs[n]] = pairs[n+1]
	}
	return t
}

// TestCombinedLosesNothing: what isn't known of a member isn't known of the
// union or pipe either.
func TestCombinedLosesNothing(t *testing.T) {
	partial, wide := indexed("alice", "x"), indexed("@example.org", "alice")
	partial.Partial, wide.DomainWide = sssd, true
	known := map[string]*Table{
		"hash:a": indexed("alice", "x", "bob", "x"), "hash:x": indexed("x", "alice"), "hash:mail": indexed("x", "bob@example.org"),
		"unix:passwd.byname": partial, "mysql:wide": wide,
	}
	for _, tt := range []struct {
		name          string
		partial, wide bool
		keys          string // that it holds
	}{
		{"unionmap:{hash:a, hash:x}", false, false, "alice bob x"},
		{"unionmap:{hash:a, unix:passwd.byname}", true, false, "alice bob"},
		{"unionmap:{unix:passwd.byname, hash:a}", true, false, "alice bob"},
		{"unionmap:{hash:a, mysql:wide}", false, true, "alice bob anybody@example.org"},
		{"unionmap:{unionmap:{unix:passwd.byname}, hash:x}", true, false, "alice x"},
		{"unionmap:{static:x, unix:passwd.byname}", true, false, "alice anybody"},
		{"unionmap:{tcp:127.0.0.1:1, hash:a}", true, false, "alice bob"},
		{"pipemap:{hash:a, hash:x}", false, false, "alice bob"},
		{"pipemap:{unix:passwd.byname, hash:x}", true, false, "alice"},
		{"pipemap:{hash:x, unix:passwd.byname}", true, false, "x"},
		{"pipemap:{mysql:wide, hash:a}", false, true, "anybody@example.org"},
		{"pipemap:{hash:a, hash:mail, mysql:wide}", false, false, "alice bob"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := reader(settings{}, known)
			table, reason := i.table("local_recipient_maps", tt.name)
			if table == nil {
				t.Fatalf("%v %v", reason, i.errs)
			}
			if (table.Partial != "") != tt.partial || table.DomainWide != tt.wide {
				t.Errorf("Partial %q, DomainWide %v", table.Partial, table.DomainWide)
			}
			for _, key := range strings.Fields(tt.keys) {
				if _, found := table.find(key); !found {
					t.Errorf("lacks %s", key)
				}
			}
			if _, found := table.find("nobody@example.net"); found && !strings.Contains(tt.name, "static") {
				t.Error("holds nobody@example.net")
			}
			reason = i.useAccess(tt.name, table, "")
			if (tt.partial || tt.wide) && reason == nil {
				t.Error("an access rule that isn't listed is off, and nothing says so")
			}
		})
	}
}

// TestPartialTables: a list that a table takes part in doesn't call it exact
// when the table isn't known whole.
func TestPartialTables(t *testing.T) {
	for _, parameter := range []string{
		"transport_maps", "relocated_maps", "smtpd_sender_login_maps", "rbl_reply_maps", "local_recipient_maps",
		"relay_domains", "mynetworks", "postscreen_access_list",
	} {
		t.Run(parameter, func(t *testing.T) {
			partial := indexed("example.org", "REJECT", "zen.example", "x")
			partial.Partial = sssd
			set := settings{parameter: "hash:p", "smtpd_sasl_auth_enable": "yes"}
			i := reader(set, map[string]*Table{"hash:p": partial})
			i.conf = &config{postscreen: set}
			switch parameter {
			case "rbl_reply_maps":
				i.dnsbl()
			case "local_recipient_maps":
				i.addressTables(parameter, func() {})
			case "relay_domains":
				i.domains(parameter, exactly, &i.spec.Addresses.Relay)
			case "mynetworks":
				i.networks(parameter)
			case "postscreen_access_list":
				i.screenAccess(&policy.Postscreen{})
			default:
				i.otherTables()
			}
			if len(i.report.Items) == 0 || i.report.Items[0].Class == fidelity.Exact || !strings.Contains(i.report.Items[0].Why, sssd) {
				t.Errorf("the report says %+v", i.report.Items)
			}
		})
	}
}

func TestNISOff(t *testing.T) {
	for domain, want := range map[string]bool{"(none)\n": true, "(None)": true, "": true, "\n": true, "example.org\n": false} {
		if got := nisOff(domain, nil); got != want {
			t.Errorf("%q: %v", domain, got)
		}
	}
	if nisOff("", context.Canceled) {
		t.Error("off, though nobody knows")
	}
}

// TestDomainWideAccess: in an access table "@domain" stands for the addresses there, whatever
// their local-part is.
func TestDomainWideAccess(t *testing.T) {
	wide := indexed("@example.org", "REJECT", "a@example.net", "REJECT")
	wide.Type, wide.DomainWide = "mysql", true
	i := reader(settings{}, map[string]*Table{"mysql:wide": wide})
	if reason := i.useAccess("mysql:wide", wide, ""); reason != nil {
		t.Fatal(reason)
	}
	spec := policy.NewSpec()
	spec.Tables, spec.Learned = i.spec.Tables, i.spec.Learned
	spec.Restrictions.Recipient = []policy.Restriction{{Kind: "check_recipient_access", Arg: "mysql:wide"}, {Kind: "permit"}}
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	for rcpt, want := range map[string]int{"a@example.org": 554, "b+c@example.org": 554, "a@sub.example.org": 0, "a@example.net": 554, "b@example.net": 0} {
		s := snap.Session(&testmx.MapResolver{}, envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Name: "unknown", ReverseName: "unknown"})
		to, _, err := envelope.ParseForwardPath("<" + rcpt + ">")
		if err != nil {
			t.Fatal(err)
		}
		s.Connect(t.Context())
		s.Helo(t.Context(), "x.example")
		from, _, err := envelope.ParseReversePath("<>")
		if err != nil {
			t.Fatal(err)
		}
		s.Mail(t.Context(), from, policy.MailParams{})
		if v := s.Rcpt(t.Context(), to); v.Reply.Code != want && (want != 0 || v.Rule.Kind == "check_recipient_access") {
			t.Errorf("%s: %d %s", rcpt, v.Reply.Code, v.Reply.Text)
		}
		s.Close()
	}
}
