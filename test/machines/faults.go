package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// leader is the machine where the database takes writes.
func (s *stage) leader() (*machine, error) {
	var found *machine
	err := retry(2*time.Minute, func() error {
		for _, m := range s.machines {
			if m.boot == nil {
				continue
			}
			out, err := m.do("patronictl -c /etc/patroni/config.yml list -f tsv")
			if err != nil {
				return err
			}
			for line := range strings.Lines(out) {
				f := strings.Split(strings.TrimSpace(line), "\t")
				if len(f) > 4 && f[3] == "Leader" && f[4] == "running" {
					for _, l := range s.machines {
						if l.ip() == f[2] {
							found = l
							return nil
						}
					}
				}
			}
			return errors.New(out)
		}
		return errors.New("no machine is up")
	})
	return found, err
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

// faults goes through the page's "What fails how".
func (s *stage) faults() error {
	for _, f := range []struct {
		row string
		do  func(leader *machine, others []*machine) error
	}{
		{"a secondary, its disk intact", func(_ *machine, o []*machine) error {
			_, err := o[0].do("kill -9 $(systemctl show -P MainPID understudy.service)")
			s.answers("killed")
			return errors.Join(err, s.takes("after that", o[0]))
		}},
		{"the database's leader", func(l *machine, o []*machine) error {
			_, err := l.do(killDatabase)
			s.answers("killed")
			return errors.Join(err, s.takes("after that", s.machines...))
		}},
		{"one standby of two", func(_ *machine, o []*machine) error {
			_, err := o[0].do(stopDatabase)
			s.answers("stopped")
			err = errors.Join(err, s.takes("after that", s.machines...), o[1].finds("spool-one-standby"))
			_, started := o[0].do("systemctl start patroni")
			return errors.Join(err, started)
		}},
		{"both standbys", func(l *machine, o []*machine) error {
			for _, m := range o {
				if _, err := m.do(stopDatabase); err != nil {
					return err
				}
			}
			s.answers("stopped")
			s.answers("stopped, again")
			err := l.finds("spool-alone")
			for _, m := range o {
				_, started := m.do("systemctl start patroni")
				err = errors.Join(err, started)
			}
			return errors.Join(err, s.takes("started", s.machines...))
		}},
		{"all databases", func(l *machine, o []*machine) error {
			err := each(s.machines, func(m *machine) error { _, err := m.do(stopDatabase); return err })
			s.answers("stopped")
			err = errors.Join(err, l.finds("spool-away"), each(s.machines, func(m *machine) error { _, err := m.do("systemctl start patroni"); return err }))
			return errors.Join(err, s.takes("started", s.machines...))
		}},
		{"etcd's majority", func(l *machine, o []*machine) error {
			for _, m := range o {
				if _, err := m.do("systemctl stop etcd"); err != nil {
					return err
				}
			}
			time.Sleep(25 * time.Second) // Patroni's ttl
			s.answers("stopped for 25 s")
			for _, m := range o {
				if _, err := m.do("systemctl start --no-block etcd"); err != nil {
					return err
				}
			}
			return s.takes("started", s.machines...)
		}},
		{"the way from one secondary to the database", func(l *machine, o []*machine) error {
			rule := " OUTPUT -d " + l.ip() + " -p tcp --dport 5432 -j DROP"
			if _, err := bash("ip netns exec " + o[0].ns() + " iptables -A" + rule); err != nil {
				return err
			}
			s.answers("cut")
			s.answers("cut, again")
			_, err := bash("ip netns exec " + o[0].ns() + " iptables -D" + rule)
			return errors.Join(err, s.takes("mended", s.machines...))
		}},
	} {
		fmt.Printf("-- %s\n", f.row)
		if err := s.standbys(); err != nil {
			return err
		}
		l, err := s.leader()
		if err == nil {
			err = f.do(l, s.others(l))
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.row, err)
		}
	}
	return errors.Join(s.standbys(), s.arrived(3*time.Minute))
}

// finds waits until the doctor reports the check.
func (m *machine) finds(check string) error {
	return m.shows(30*time.Second, findings, check)
}
