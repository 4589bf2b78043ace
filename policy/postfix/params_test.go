package postfix

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/postfix/filters"
)

//go:generate env UPDATE=1 go test -run ^TestParityDoc$ .

// TestEveryParameterIsClassified goes through what the installed Postfix has.
func TestEveryParameterIsClassified(t *testing.T) {
	classified := map[string]bool{}
	for _, p := range Parameters {
		if classified[p.Name] {
			t.Errorf("%s is classified twice", p.Name)
		}
		classified[p.Name] = true
	}
	out, err := exec.Command("/usr/sbin/postconf", "-d").Output()
	if err != nil {
		t.Fatalf("postconf -d: %v", err)
	}
	seen := 0
	for l := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(l, " ")
		if !strings.HasPrefix(name, "smtpd_") && !strings.HasPrefix(name, "postscreen_") && !decides(name) {
			continue
		}
		if seen++; !classified[name] {
			t.Errorf("%s isn't classified: what does the secondary do about it?", name)
		}
	}
	if seen < 150 {
		t.Errorf("only %d parameters seen", seen)
	}
}

// decides matches the families of other parameters that decide.
func decides(name string) bool {
	if strings.Contains(name, "smtp_") || strings.Contains(name, "lmtp_") || strings.HasPrefix(name, "milter_") {
		return false
	}
	for _, suffix := range []string{"_reject_code", "_defer_code", "_tempfail_action", "_restrictions", "_recipient_maps",
		"header_checks", "body_checks", "canonical_maps", "_bcc_maps"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	for _, prefix := range []string{"address_verify_", "unverified_", "unknown_", "resolve_", "strict_", "allow_", "append_", "permit_",
		"reject_", "multi_recipient_", "virtual_alias_", "parent_domain_", "my", "inet_", "proxy_interfaces", "receive_override_", "mime_",
		"body_checks", "header_checks", "disable_mime_input_", "disable_vrfy_", "empty_address_", "canonical_", "recipient_canonical_",
		"sender_canonical_", "sender_dependent_", "message_", "soft_", "swap_", "double_bounce_sender", "enable_idna", "maps_rbl_",
		"owner_request_", "default_rbl_", "default_transport", "transport_maps", "relocated_maps", "proxy_read_maps"} {
		if strings.HasPrefix(name, prefix) && !strings.HasPrefix(name, "default_transport_") {
			return true
		}
	}
	return slices.Contains([]string{"relay_domains", "virtual_mailbox_domains", "virtual_mailbox_maps", "virtual_transport",
		"relay_transport", "local_transport", "recipient_delimiter", "header_size_limit", "line_length_limit", "hopcount_limit",
		"queue_minfree", "smtputf8_enable", "local_header_rewrite_clients", "remote_header_rewrite_domain"}, name)
}

const filterDoc = `## Filters

What an import makes of the options of the filters that decide beside Postfix, as Debian 12 has them: what an endpoint of
` + "`smtpd_milters` or `check_policy_service`" + ` stands for is found by their own configurations, or said by ` + "`postfix_filter`" + `
([FILTERS.md](FILTERS.md)). A filter that refuses nothing by its settings is no gap. An option that isn't known makes a filter one
that isn't followed, and so does one that isn't replicated where it is set; the report names it with file and line. The tests are
those of policy/postfix/filters, which compare with the programs themselves. Programs that examine what a message holds (rspamd, amavis and
others) aren't followed at all; of their options those count that say what becomes of what they find.
`

// TestParityDoc keeps docs/PARITY.md equal to the tables; with UPDATE=1 it
// writes the file.
func TestParityDoc(t *testing.T) {
	ev := readEvidence(t)
	var b strings.Builder
	b.WriteString(`# Parity with Postfix

Generated from ` + "`policy/postfix`" + ` by ` + "`make generate`" + `. What an import makes of each restriction and parameter:

| class | meaning |
| --- | --- |
| exact | the same decision, offline |
| given-dns | the same decision, given the same DNS answers |
| approximated | nearly the same; the note says where it differs |
| not-replicated | the note says why; the report of an import says what the secondary does instead |
| no-decision | no verdict depends on it |

The report of an import (` + "`understudy policy import postfix`" + `) classifies every element of *your* lists.
What the secondary does instead of what isn't replicated is your choice where the report shows options: ignore it, defer
what it might refuse, soften the refusals that it might prevent, or ask the live primary. Then whoever would be accepted is asked
about at RCPT of the primary, in the client's name (XCLIENT), and gets its refusal; while it can't be asked he is deferred (ask), or
accepted (ask-else-ignore, ask-else-soften). What is decided after RCPT can't be asked.

A secondary that follows a publisher (` + "`[sync]`" + `) accepts mail for its own ` + "`[sync] domains`" + ` only, whatever the primary permits:
clients in mynetworks, for example, that send to other domains through it get 450 4.7.1 where the primary relays for them
([SECURITY.md](SECURITY.md), [PROTOCOL.md](PROTOCOL.md) §2.2). A policy that is read from a file isn't confined.

A DNS list that lists everybody, lists nobody any more or refuses this machine's questions is set aside, unless the primary sees it so, too: its
look-ups count as failed for now, which Postfix passes over ([decisions/0013](decisions/0013-sick-dns-lists.md); ` + "`[dns] sick_lists`" + `). An answer of
127.255.255.x is no listing unless a filter names it. ` + "`understudy dnsbl`" + ` shows how both sides see each list.

The tests: names without a slash are Go tests, "decisions/" is a file of policy/testdata/decisions, played by
TestDecisions, and "profiles/" a configuration in policy/postfix/testdata/profiles, played by the tests called
TestProfiles. In each the parameter or restriction matters: with it at Postfix's default, or taken away, an answer that a real
Postfix confirmed is another (test/parity checks it). What says nothing to anybody who comes to the secondary (sleep,
permit_sasl_authenticated …) matters where ` + "`permit` or `reject`" + ` in its place would be noticed. "Set in" says less: the test compares
with a real Postfix that has it set, but not without it. It is all there is for some of what is called approximated, never for
what is called exact or given-dns.

## Restrictions

| restriction | class | note | test |
| --- | --- | --- | --- |
`)
	for _, name := range sortedKeys(restrictions) {
		r := restrictions[name]
		note := r.why
		if r.canonical != "" {
			note = "the same as " + r.canonical
		}
		if r.options != nil {
			note += "; what to do: " + strings.Join(r.options, ", ")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", name, r.class, note, ev.of(t, name, r.class, ev.restriction))
	}
	b.WriteString("| `warn_if_reject` | exact |  | " + ev.of(t, "warn_if_reject", fidelity.Exact, ev.restriction) + " |\n\n" +
		"## Parameters\n\nWhere a list is meant, the elements are classified one by one.\n\n| parameter | class | note | test |\n| --- | --- | --- | --- |\n")
	ps := slices.Clone(Parameters)
	slices.SortFunc(ps, func(a, b Parameter) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range ps {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", p.Name, p.Class, strings.ReplaceAll(p.Why, "|", "\\|"), ev.of(t, p.Name, p.Class, ev.parameter))
	}
	b.WriteString("\n" + filterDoc)
	for _, program := range filters.Programs() {
		fmt.Fprintf(&b, "\n### %s\n\n| option | class | note |\n| --- | --- | --- |\n", program)
		for _, o := range filters.Options(program) {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", o.Name, o.Class, o.Why)
		}
	}
	const path = "../../docs/PARITY.md"
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("docs/PARITY.md is stale, run 'make generate' (-code +file):\n%s", diff)
	}
}
