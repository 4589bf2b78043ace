package main

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

const setUpHeading = "Set-up with three machines"

// setUpPrimary makes a Postfix. It delivers into a Maildir: a mailbox's lock would stay if
// Postfix is stopped while it delivers.
func (s *stage) setUpPrimary() error {
	_, err := s.primary.do(`apt-get update
printf '%s\n' 'postfix postfix/main_mailer_type select Internet Site' 'postfix postfix/mailname string mx.example.org' | debconf-set-selections
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postfix dnsmasq
cat >/etc/dnsmasq.conf <<.
no-resolv
local=/example.org/
mx-host=example.org,mx.example.org,10
mx-host=example.org,mx1.example.org,20
mx-host=example.org,mx2.example.org,20
mx-host=example.org,mx3.example.org,20
.
systemctl restart dnsmasq
postconf -e myhostname=mx.example.org mydestination=example.org 'mynetworks=127.0.0.0/8' inet_protocols=ipv4 home_mailbox=Maildir/ inet_interfaces=all
useradd -m alice
systemctl restart postfix
apt-get install -y /stage/understudy_0.0.1_amd64.deb`)
	return err
}

// setUp pastes the set-up. Mail waits on each machine when its queue moves into the
// database.
func (s *stage) setUp() error {
	began := time.Now()
	for _, b := range s.page[setUpHeading] {
		if strings.Contains(b.text, "queue migrate") {
			if err := errors.Join(s.primaryUp(false), s.mails(5, s.machines...)); err != nil {
				return err
			}
		}
		if err := s.setUpBlock(b, s.machines...); err != nil {
			return err
		}
	}
	fmt.Printf("-- set up within %v\n", time.Since(began).Round(time.Second))
	if len(s.page[setUpHeading]) == 0 {
		return errors.New("the page has no such blocks")
	}
	return s.members()
}

// setUpBlock pastes a block of the set-up on those of the machines that it is for.
func (s *stage) setUpBlock(b block, on ...*machine) error {
	switch {
	case b.where == "the primary":
		return s.pair(b.text, on...)
	case strings.HasPrefix(b.text, "patronictl"):
		_, _, _, err := s.roles()
		return err
	case b.where == "machine 1":
		return on[0].paste(b.text)
	case b.where == "each machine":
		return each(on, func(m *machine) error { return m.paste(b.text) })
	}
	return fmt.Errorf("a block is for %q", b.where)
}

func each(on []*machine, do func(*machine) error) error {
	errs := make([]error, len(on))
	var all sync.WaitGroup
	for i, m := range on {
		all.Go(func() { errs[i] = do(m) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// members waits until all three see each other.
func (s *stage) members() error {
	for _, m := range s.machines {
		if err := m.shows(2*time.Minute, "understudy fleet", "mx1.example.org", "mx2.example.org", "mx3.example.org"); err != nil {
			return err
		}
	}
	out, err := s.machines[0].do("understudy fleet")
	fmt.Print(out)
	return err
}

// pair runs what invites the secondaries, installs the package there, and runs the
// lines that were printed for them.
func (s *stage) pair(invite string, on ...*machine) error {
	out, err := s.primary.do(invite)
	if err != nil {
		return err
	}
	for _, m := range on {
		line := ""
		for l := range strings.Lines(out) {
			if strings.HasPrefix(l, "understudy setup secondary --hostname "+m.name) {
				line = l
			}
		}
		if line == "" {
			return fmt.Errorf("no line for %s in:\n%s", m.name, out)
		}
		if err := m.paste("apt-get install -y /stage/understudy_0.0.1_amd64.deb\n"); err != nil {
			return err
		}
		// The doctor's last word depends on more than a fleet: the network here has no Internet.
		if err := m.paste(strings.TrimSpace(line) + " --yes || understudy policy status\n"); err != nil {
			return err
		}
	}
	return nil
}

// mail sends some with the primary up, and with the primary down.
func (s *stage) mail() error {
	if err := errors.Join(s.primaryUp(true), s.arrived(2*time.Minute), s.mails(20, s.machines...), s.arrived(2*time.Minute)); err != nil {
		return err
	}
	if err := errors.Join(s.primaryUp(false), s.mails(20, s.machines...)); err != nil {
		return err
	}
	return errors.Join(s.primaryUp(true), s.arrived(2*time.Minute))
}
