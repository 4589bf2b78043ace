package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// roles are the machines by what Patroni has their databases do: the leader, the
// standby that commits wait for, and the other.
func (s *stage) roles() (leader, sync, replica *machine, err error) {
	err = retry(3*time.Minute, func() error {
		leader, sync, replica = nil, nil, nil
		up := s.machines[slices.IndexFunc(s.machines, func(m *machine) bool { return m.boot != nil })]
		out, err := up.do("patronictl -c /etc/patroni/config.yml list -f tsv")
		for line := range strings.Lines(out) {
			for _, m := range s.machines {
				switch f := strings.Split(line, "\t"); {
				case len(f) < 5 || f[2] != m.ip() || f[4] != "running" && f[4] != "streaming":
				case f[3] == "Leader":
					leader = m
				case f[3] == "Sync Standby":
					sync = m
				case f[3] == "Replica":
					replica = m
				}
			}
		}
		if err == nil && (leader == nil || sync == nil || replica == nil) {
			err = errors.New(out)
		}
		return err
	})
	return leader, sync, replica, err
}

func (s *stage) others(m *machine) (list []*machine) {
	for _, o := range s.machines {
		if o != m {
			list = append(list, o)
		}
	}
	return list
}

// answers is what each machine answers to a mail now.
func (s *stage) answers(what string) {
	var said []string
	for _, m := range s.machines {
		code, after := m.reply()
		said = append(said, fmt.Sprintf("%s %s after %v", m.name, code, after.Round(10*time.Millisecond)))
	}
	fmt.Printf("   %s: %s\n", what, strings.Join(said, ", "))
}

// takes waits until the machines take mail, and says how long that was.
func (s *stage) takes(what string, on ...*machine) error {
	began := time.Now()
	for _, m := range on {
		err := retry(2*time.Minute, func() error {
			if code, _ := m.reply(); code != "250" {
				return fmt.Errorf("%s answers %s", m.name, code)
			}
			return nil
		})
		if err != nil {
			out, _ := m.do("journalctl -u understudy -n 10; patronictl -c /etc/patroni/config.yml list")
			return fmt.Errorf("%s: %w\n%s", what, err, out)
		}
	}
	fmt.Printf("   %s: mail is taken after %v\n", what, time.Since(began).Round(100*time.Millisecond))
	return nil
}

const (
	stopDatabase = "systemctl stop patroni"
	killDatabase = "kill -9 $(systemctl show -P MainPID patroni) $(head -1 /var/lib/postgresql/15/understudy/postmaster.pid)"
	findings     = "understudy doctor || true"
)

// faults goes through the page's "What fails how", with the primary down.
func (s *stage) faults() error {
	if err := s.primaryUp(false); err != nil {
		return err
	}
	for _, f := range slices.Concat(s.ofMachines(), s.ofDatabases()) {
		fmt.Printf("-- %s\n", f.row)
		leader, sync, replica, err := s.roles()
		if err == nil {
			err = f.do(leader, sync, replica)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.row, err)
		}
	}
	_, _, _, err := s.roles()
	return errors.Join(err, s.primaryUp(true), s.arrived(3*time.Minute))
}

// fault is a row of what fails how in docs/FLEET.md.
type fault struct {
	row string
	do  func(leader, sync, replica *machine) error
}

func (s *stage) ofMachines() []fault {
	return []fault{
		{"the leader's machine falls silent", func(leader, sync, replica *machine) error {
			err := errors.Join(leader.link("down"), s.takes("cut off", sync, replica))
			err = errors.Join(err, leader.link("up"), s.takes("back", s.machines...), s.primaryUp(true), s.arrived(2*time.Minute))
			return errors.Join(err, s.primaryUp(false)) // Patroni's leader may have changed back, wrongly
		}},
		{"a secondary, its disk intact", func(leader, sync, replica *machine) error {
			_, err := sync.do("kill -9 $(systemctl show -P MainPID understudy.service)")
			s.answers("killed")
			return errors.Join(err, s.takes("after that", sync))
		}},
		{"a standby's machine falls silent", func(leader, sync, replica *machine) error {
			err := errors.Join(sync.link("down"), s.takes("cut off", leader, replica))
			return errors.Join(err, sync.link("up"), s.takes("back", s.machines...))
		}},
		{"the way from one secondary to the database", func(leader, sync, replica *machine) error {
			rule := " OUTPUT -d " + leader.ip() + " -p tcp --dport 5432 -j DROP"
			if _, err := bash("ip netns exec " + sync.ns() + " iptables -A" + rule); err != nil {
				return err
			}
			s.answers("cut")
			s.answers("cut, again")
			_, err := bash("ip netns exec " + sync.ns() + " iptables -D" + rule)
			return errors.Join(err, s.takes("mended", s.machines...))
		}},
	}
}

func (s *stage) ofDatabases() []fault {
	return []fault{
		{"the database's leader", func(leader, sync, replica *machine) error {
			_, err := leader.do(killDatabase)
			s.answers("killed")
			return errors.Join(err, s.takes("after that", s.machines...))
		}},
		{"one standby of two", func(leader, sync, replica *machine) error {
			_, err := sync.do(stopDatabase)
			s.answers("stopped")
			err = errors.Join(err, s.takes("after that", s.machines...), replica.finds("spool-one-standby"))
			_, started := sync.do("systemctl start patroni")
			return errors.Join(err, started)
		}},
		{"both standbys", func(leader, sync, replica *machine) error {
			for _, m := range []*machine{sync, replica} {
				if _, err := m.do(stopDatabase); err != nil {
					return err
				}
			}
			s.answers("stopped")
			s.answers("stopped, again")
			err := leader.finds("spool-alone")
			for _, m := range []*machine{sync, replica} {
				_, started := m.do("systemctl start patroni")
				err = errors.Join(err, started)
			}
			return errors.Join(err, s.takes("started", s.machines...))
		}},
		{"all databases", func(leader, sync, replica *machine) error {
			err := each(s.machines, func(m *machine) error { _, err := m.do(stopDatabase); return err })
			s.answers("stopped")
			err = errors.Join(err, leader.finds("spool-away"), each(s.machines, func(m *machine) error { _, err := m.do("systemctl start patroni"); return err }))
			return errors.Join(err, s.takes("started", s.machines...))
		}},
		{"etcd's majority", func(leader, sync, replica *machine) error {
			two := []*machine{sync, replica}
			if err := each(two, func(m *machine) error { _, err := m.do("systemctl stop etcd"); return err }); err != nil {
				return err
			}
			began := time.Now()
			err := retry(time.Minute, func() error {
				if code, _ := leader.reply(); code != "451" {
					return fmt.Errorf("%s answers %s", leader.name, code)
				}
				return nil
			})
			if err != nil {
				return err
			}
			s.answers(fmt.Sprintf("stopped for %v", time.Since(began).Round(time.Second)))
			if err := each(two, func(m *machine) error { _, err := m.do("systemctl start --no-block etcd"); return err }); err != nil {
				return err
			}
			return s.takes("started", s.machines...)
		}},
	}
}

// finds waits until the doctor reports the check.
func (m *machine) finds(check string) error {
	return m.shows(30*time.Second, findings, check)
}
