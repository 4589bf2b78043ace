package doctor

import (
	"context"
	"fmt"
	"strings"
)

// Spool is a queue in a database, and who shares that.
type Spool struct {
	Err        error // why the database can't be used
	OneMachine bool  // durability = "one-machine"
	Unproven   bool  // a server's certificate isn't verified
	Superuser  bool  // is the role
	Standbys   int   // connected
	Unheard    []string
	Differing  []string // by their policy
}

// spool: what a 250 rests on.
func (x *exam) spool(context.Context) (looked bool) {
	s := x.Spool
	if s == nil {
		return false
	}
	switch {
	case s.Err != nil:
		x.report(Fault, "spool-away", "", "The database of the queue can't be used: mail is answered 451, or kept on this machine (`fallback`).", s.Err.Error(), "patronictl -c /etc/patroni/config.yml list, on a machine of the database")
		return true
	case s.OneMachine:
		x.report(Warning, "spool-one-machine", "", "Mail is accepted without waiting for a standby: it is lost with the database's machine.", `durability = "one-machine"`, "remove `durability` under [queue], once there is a standby")
	case s.Standbys == 0:
		x.report(Fault, "spool-alone", "", "The database has no standby: each commit waits for one, and mail is answered 451.", "pg_stat_replication is empty", "start a standby: systemctl start patroni")
	case s.Standbys == 1:
		x.report(Warning, "spool-one-standby", "", "The database has one standby: when that is lost, too, mail is answered 451.", "one line in pg_stat_replication", "start the other standby: systemctl start patroni")
	}
	if s.Unproven {
		x.report(Warning, "spool-tls", "", "The certificate of a database server isn't verified: who is on the way can read the mail.", "`dsn` under [queue]", "sslmode=verify-full in `dsn` (docs/FLEET.md)")
	}
	if s.Superuser {
		x.report(Warning, "spool-superuser", "", "Our role at the database is a superuser.", "pg_roles", "give it a role that owns its database alone")
	}
	if len(s.Unheard) > 0 {
		x.report(Warning, "fleet-unheard", "", "Other secondaries weren't heard of lately: their mail is relayed from here.", strings.Join(s.Unheard, ", "), "start them; for one that is gone for good see docs/FLEET.md")
	}
	if len(s.Differing) > 0 {
		x.report(Warning, "fleet-policy", "", "The secondaries follow different policies.", fmt.Sprintf("behind: %s", strings.Join(s.Differing, ", ")), "understudy policy status, on each of these")
	}
	return true
}
