package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"
)

// Push is what there is to know of lists of recipients that are pushed here.
type Push struct {
	Listen  string       // host:port; "": none are
	Name    string       // by which it is pushed to; "": the exam's host name
	Lists   []PushedList // of the domains under [push]
	Unread  []string     // of these, the domains whose list the policy doesn't read
	Untaken []string     // domains whose list the policy waits for, and that aren't under [push]
	Dir     string       // where the lists are
}

// PushedList is the state of one.
type PushedList struct {
	Domain string
	Pushed time.Time // or confirmed, last; zero: never
	Stale  bool
	Staged string // a deletion that waits for a word of the operator's
	Token  bool   // somebody may push it
}

func (x *exam) push(ctx context.Context) (looked bool) {
	p := &x.Push
	for _, d := range p.Untaken {
		x.report(Fault, "push-untaken", d, "The policy waits for a list that nobody can push: its recipients are answered 450.", "recipients_pushed in the policy, and the domain isn't under [push]", "add it to `domains` under [push], and restart; then understudy push token "+d)
	}
	if p.Listen == "" {
		return len(p.Untaken) > 0
	}
	x.pushDoor(ctx)
	x.pushFiles()
	for _, d := range p.Unread {
		x.report(Fault, "push-unread", d, "A list is pushed that the policy doesn't read.", "it is "+p.Dir+"/"+d+".list", "recipients_pushed = \""+p.Dir+"\" in the policy file with this domain, or that file as a [[source]]; else take the domain out of [push]")
	}
	for _, l := range p.Lists {
		switch {
		case l.Pushed.IsZero():
			x.report(Fault, "push-never", l.Domain, "No list was pushed yet: every recipient that is listed nowhere else is answered 450.", "", "understudy push, where the primary's recipients are known")
		case l.Staged != "":
			x.report(Fault, "push-deletion", l.Domain, "A list that was pushed deletes many recipients: somebody has to say that this was meant. Until then unknown ones are answered 450.", l.Staged, "understudy push approve "+l.Domain+", or understudy push reject "+l.Domain)
		case l.Stale:
			x.report(Fault, "push-stale", l.Domain, "The list is old: unknown recipients are answered 450.", "pushed or confirmed last at "+l.Pushed.UTC().Format(time.RFC3339), "look at the timer and the script that push it")
		}
		if !l.Token {
			x.report(Warning, "push-token", l.Domain, "Nobody can push this domain's list: it has no token.", "", "understudy push token "+l.Domain)
		}
	}
	return true
}

// pushDoor looks at where lists are pushed, as whoever pushes does.
func (x *exam) pushDoor(ctx context.Context) {
	at, name := x.Push.Listen, cmp.Or(x.Push.Name, x.Hostname)
	ctx, cancel := context.WithTimeout(ctx, x.Timeout)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, ServerName: name}} // it is looked at below
	c, err := dialer.DialContext(ctx, "tcp", x.near(at))
	var shut *net.OpError
	switch {
	case errors.As(err, &shut) && shut.Op == "dial":
		x.report(Fault, "push-shut", at, "Nobody answers where lists are pushed.", err.Error(), "systemctl restart understudy, or understudy-publish on a publisher")
		return
	case err != nil:
		x.report(Fault, "push-other", at, "What answers where lists are pushed doesn't speak TLS.", err.Error(), "see who has the port (ss -ltnp), or set another `listen` under [push]")
		return
	}
	defer c.Close()
	chain := c.(*tls.Conn).ConnectionState().PeerCertificates
	end := chain[0].NotAfter
	switch why := x.untrusted(chain, name); {
	case x.Now.After(end):
		x.report(Fault, "push-certificate-ended", at, "The certificate has ended: nobody pushes any more.", "it ended at "+end.UTC().Format(time.RFC3339), "renew it; it is read anew for each connection")
	case chain[0].VerifyHostname(name) != nil:
		x.report(Warning, "push-certificate-name", at, "The certificate isn't good for "+name+": whoever pushes to that name refuses it.", chain[0].VerifyHostname(name).Error(), "get one for "+name+", or push to a name that it has")
	case why != "":
		x.report(Warning, "push-certificate-bad", at, "The system's authorities don't vouch for the certificate: who pushes needs --ca.", why, "understudy push --ca FILE, or a certificate with its chain")
	case end.Sub(x.Now) < soon:
		x.report(Warning, "push-certificate-ends", at, "The certificate of push ends soon.", "it ends at "+end.UTC().Format(time.RFC3339), "renew it; it is read anew for each connection")
	}
}

// pushFiles looks whether others may change what counts as the list.
func (x *exam) pushFiles() {
	dir := x.Push.Dir
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return // it is made at the start
	}
	if err != nil {
		x.report(Unknown, "push-files-unknown", dir, "The directory of the lists can't be looked at.", err.Error(), "run this as root")
		return
	}
	open := ""
	if fi, err := os.Stat(dir); err == nil && fi.Mode()&0o022 != 0 {
		open = fmt.Sprintf("%s is %v", dir, fi.Mode())
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Mode()&0o022 != 0 {
			open = cmp.Or(open, fmt.Sprintf("%s/%s is %v", dir, e.Name(), fi.Mode()))
		}
	}
	if open != "" {
		x.report(Fault, "push-files-open", dir, "Others on this machine may change the lists and the hashes of their tokens.", open, "chmod -R go-w "+dir)
	}
}
