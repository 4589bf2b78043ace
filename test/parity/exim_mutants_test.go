package parity

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
)

// eximMutants changes the rules of a policy's lists, one at a time: the sessions notice
// four of five, three of a sample's four. They are compared with the policy itself, which Exim has just confirmed.
// EXIM_MUTANTS=1 tries all, EXIM_MUTANTS=6, the default, each sixth.
func eximMutants(t *testing.T, name string, spec *policy.Spec, nameserver string, m *parity.Material, seed uint64, sessions int) {
	t.Helper()
	all := slices.DeleteFunc(mutants(t, spec), func(m mutant) bool {
		return !strings.HasPrefix(m.what, "acl.lists.") || strings.Contains(m.what, ".where ") || strings.Contains(m.what, "log_message")
	})
	for i := range all {
		all[i].what = statementOf.ReplaceAllString(all[i].what, " without $1")
	}
	same := sameOf(t, name, spec)
	local, stop := serve(t, spec, nameserver, true)
	defer stop()
	want := make([]parity.Transcript, sessions)
	each(sessions, func(n int) {
		var err error
		if want[n], err = local.Play(t.Context(), m.Nth(seed, n)); err != nil {
			t.Errorf("session %d: %v", n, err)
		}
	})
	var mu sync.Mutex // guards the counts
	seen, valid, excused := 0, 0, 0
	var missed []string
	step := number(t, "EXIM_MUTANTS", 6)
	each(len(all), func(i int) {
		if i%step > 0 {
			return
		}
		snap, err := policy.Decode("mutant", bytes.NewReader(all[i].spec), nil)
		if err != nil { // a list that others need
			return
		}
		changed, end := serve(t, snap.Spec(), nameserver, true)
		defer end()
		found := false
		for n := 0; n < sessions && !found; n++ {
			got, err := changed.Play(t.Context(), m.Nth(seed, n))
			found = err != nil || outcome(got) != outcome(want[n])
		}
		mu.Lock()
		defer mu.Unlock()
		switch excuse := same[all[i].what]; {
		case found && excuse:
			t.Errorf("mutant %s is seen, though it is said to be the same", all[i].what)
		case excuse:
			excused++
		case found:
			valid++
			seen++
		default:
			valid++
			missed = append(missed, all[i].what)
		}
	})
	slices.Sort(missed)
	t.Logf("mutants of lists: %d tried, %d seen, %d more the same; not seen\n%s", valid, seen, excused, strings.Join(missed, "\n"))
	if 5*seen < 4*valid && step == 1 || 4*seen < 3*valid { // a sample may be worse than all
		t.Errorf("of %d mutants only %d are seen", valid, seen)
	}
}

// statementOf finds where a statement stands in the name of the mutant that lacks it.
var statementOf = regexp.MustCompile(` without map\[.* where:(\S+)\]$`)

// each calls do for 0 … n-1, some at once.
func each(n int, do func(i int)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range next {
				do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// outcome is all that a transcript decides; accepted messages are numbered.
func outcome(t parity.Transcript) string {
	var b strings.Builder
	for _, r := range t {
		if r.Code < 400 {
			r.Text = ""
		}
		fmt.Fprintln(&b, r)
	}
	return b.String()
}

// eximSame are, for each profile, statements without which all is decided as before, and
// other mutants that decide so: one is for clients without an address or that log in,
// before the same decision, about a variable that nothing sets.
var eximSame = map[string][]string{
	"debian-split": {"acl_check_rcpt.0", "acl_check_rcpt.0.items.0.arg reset", "acl_check_rcpt.11",
		"acl_check_rcpt.11.items.0.arg reset", "acl_check_rcpt.11.items without map[arg:+relay_to_domains kind:domains]", "acl_check_rcpt.11.items without map[arg:recipient kind:verify]", "acl_check_rcpt.11.items without map[kind:endpass]"},
	"debian-monolithic": {"acl_check_rcpt.0", "acl_check_rcpt.0.items.0.arg reset", "acl_check_rcpt.12",
		"acl_check_rcpt.12.items.0.arg reset", "acl_check_rcpt.12.items without map[arg:+relay_to_domains kind:domains]", "acl_check_rcpt.12.items without map[arg:recipient kind:verify]", "acl_check_rcpt.12.items without map[kind:endpass]"},
	"cpanel": {"acl_smtp_rcpt.0", "acl_smtp_rcpt.0.items.0.arg reset", "acl_smtp_rcpt.0.items without map[arg:recipient kind:verify]", "acl_smtp_rcpt.0.items without map[kind:endpass]",
		"acl_smtp_rcpt.1.items without map[arg:+local_domains kind:domains]", "acl_smtp_rcpt.4", "acl_smtp_rcpt.4.items without map[arg:! +local_domains kind:domains]", "acl_smtp_rcpt.4.items without map[kind:message]"},
	"directadmin": {"acl_smtp_mail_proxy.0", "acl_connect.0", "acl_check_message.0.items without map[arg:${if eq{$acl_m_is_whitelisted}{1}{1}{0}} kind:condition]",
		"acl_check_helo.3.items without map[arg:${if eq{$interface_port}{25}} kind:condition]",
		"acl_check_recipient.6", "acl_check_recipient.6.items without map[arg:* kind:authenticated]", "acl_check_recipient.6.items without map[arg:authenticate first kind:message]", "acl_check_recipient.6.items without map[kind:endpass]",
		"acl_check_recipient.11", "acl_check_recipient.15", "acl_check_recipient.15.items without map[arg:+relay_domains kind:domains]", "acl_check_recipient.15.items without map[arg:: kind:senders]",
		"acl_check_recipient.18.items without map[kind:endpass]", "acl_check_recipient.18.items.2.arg reset", "acl_check_recipient.19", "acl_check_recipient.19.items without map[arg:recipient kind:verify]", "acl_check_recipient.22.items.0.arg reset"},
	"hestia":  {"acl_check_rcpt.0", "acl_check_rcpt.0.items.0.arg reset", "acl_check_rcpt.1", "acl_check_rcpt.1.items.0.arg reset", "acl_check_rcpt.5", "acl_check_rcpt.5.items.0.arg reset"},
	"hosting": {"acl_smtp_rcpt.0", "acl_smtp_rcpt.0.items.0.arg reset", "acl_smtp_rcpt.2", "acl_smtp_rcpt.2.items.0.arg reset", "acl_smtp_mail.0", "acl_smtp_mail.0.items.0.arg reset"},
}

// sameOf returns the names of eximSame's mutants.
func sameOf(t *testing.T, profile string, spec *policy.Spec) map[string]bool {
	same := map[string]bool{}
	for _, at := range eximSame[profile] {
		list, n, _ := strings.Cut(at, ".")
		if strings.ContainsAny(n, ". ") {
			same["acl.lists."+at] = true
			continue
		}
		i, err := strconv.Atoi(n)
		if err != nil || i >= len(spec.ACL.Lists[list]) {
			t.Fatalf("no statement %s", at)
		}
		same[fmt.Sprintf("acl.lists.%s without %s", list, spec.ACL.Lists[list][i].Where)] = true
	}
	return same
}
