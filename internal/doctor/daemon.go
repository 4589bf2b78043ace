package doctor

import (
	"context"
	"fmt"
)

// Daemon is what the daemon says of itself.
type Daemon struct {
	Err         error  // why it can't be asked, nil when it answers
	Unpaired    bool   // its policy comes from a file
	Policy      string // fresh, stale, none
	Problem     string // of the policy: an alarm with its remedy
	Staged      string // a deletion that waits for a word of the operator's
	Held        int    // messages
	Quarantined int
	Damaged     bool
	SetAside    []string // DNS lists
	Decided     uint64   // by the primary in live sessions
	Unexplained uint64   // of them, otherwise than by an exact rule of ours
	Filters     []string // of [[filter]] that don't answer, and why
	Idle        []string // of [[filter]] that stand for no milter of the policy
	Everybody   []string // domains whose recipients are asked about, and all of them accepted
}

func (x *exam) daemon(context.Context) (looked bool) {
	d := x.Daemon
	for _, f := range d.Filters {
		x.report(Fault, "filter-away", "", "A filter that stands for one of the primary's milters doesn't answer: the milter's default action stands for it.", f, "look at the filter's service, and at address under [[filter]]")
	}
	if d.Err != nil {
		x.report(Fault, "daemon-down", "", "The daemon doesn't answer.", d.Err.Error(), "systemctl start understudy.socket understudy.service")
		return true
	}
	switch {
	case d.Unpaired:
	case d.Policy == "none":
		x.report(Fault, "policy-none", "", "There is no policy: every client is turned away for now.", d.Problem, "understudy invite, on the primary; then paste what it prints here")
	case d.Policy != "fresh":
		x.report(Fault, "policy-stale", "", "The policy is old: unknown recipients get 450.", d.Problem, "systemctl status understudy-publish, on the primary")
	case d.Problem != "":
		x.report(Fault, "policy-problem", "", "The primary's policy can't be followed as it is.", d.Problem, "understudy policy status")
	}
	if len(d.Idle) > 0 {
		x.report(Warning, "filter-idle", "", "Filters are never asked: the policy has no milter that they stand for.", listed(d.Idle), "write milter under [[filter]] as the primary's smtpd_milters has it")
	}
	if len(d.Everybody) > 0 {
		x.report(Warning, "asked-everybody", "", "The primary accepts recipients that are made up, so this machine accepts everybody as well.", listed(d.Everybody), "have the primary refuse unknown recipients at RCPT; or list them: recipients_file, recipients_pushed")
	}
	if d.Staged != "" {
		x.report(Fault, "policy-deletion", "", "Many recipients were deleted at the primary: somebody has to say that this was meant.", d.Staged, "understudy policy pending")
	}
	if d.Held > 0 {
		x.report(Warning, "mail-held", "", "Mail is held that the primary didn't want, or that grew too old.", fmt.Sprintf("%d messages", d.Held), "understudy queue list")
	}
	if len(d.SetAside) > 0 {
		x.report(Warning, "list-set-aside", "", "DNS lists are set aside: they refuse nobody until their answers can be right again.", listed(d.SetAside), "understudy dnsbl")
	}
	if d.Unexplained > 0 {
		x.report(Warning, "parity", "", "The primary decides otherwise than this machine would, where the policy should be exact.", fmt.Sprintf("%d of %d decisions", d.Unexplained, d.Decided), "understudy parity live")
	}
	if d.Quarantined > 0 || d.Damaged {
		x.report(Fault, "queue-damaged", "", "The queue has damage.", fmt.Sprintf("%d messages put aside; store damaged: %v", d.Quarantined, d.Damaged), "understudy queue quarantine; understudy queue verify")
	}
	return true
}
