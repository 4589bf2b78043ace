package main

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// powerCut takes the power of all machines at once, right after their 250s.
func (s *stage) powerCut() error {
	if err := errors.Join(s.primaryUp(false), s.mails(20, s.machines...)); err != nil {
		return err
	}
	for _, m := range s.machines {
		if err := m.cut(false); err != nil {
			return err
		}
	}
	// At the same time: an etcd alone is never up.
	if err := each(s.machines, func(m *machine) error { return m.up() }); err != nil {
		return err
	}
	_, _, _, err := s.roles()
	return errors.Join(err, s.takes("all booted", s.machines...), s.primaryUp(true), s.arrived(3*time.Minute))
}

// replace wipes the machine that leads right after its 250s; the others relay its
// mail. Then the page's blocks make a new one of the same name.
func (s *stage) replace() error {
	lost, left, _, err := s.roles()
	if err == nil {
		err = errors.Join(s.primaryUp(false), s.mails(20, s.machines...), lost.cut(true))
	}
	if err != nil {
		return err
	}
	s.answers("lost and wiped")
	if err := errors.Join(s.takes("after that", s.others(lost)...), s.primaryUp(true), s.arrived(4*time.Minute)); err != nil {
		return err
	}
	if err := lost.up(); err != nil {
		return err
	}
	began := time.Now()
	for _, b := range s.page["Replace a machine"] {
		number := strings.NewReplacer("lost=3", fmt.Sprint("lost=", lost.n), "mx3", fmt.Sprint("mx", lost.n))
		switch b.where {
		case "a machine that is left":
			err = left.paste(number.Replace(b.text))
		case "the primary":
			err = s.again(lost, number.Replace(b.text))
		default:
			err = fmt.Errorf("a block is for %q", b.where)
		}
		if err != nil {
			return err
		}
	}
	fmt.Printf("-- replaced within %v\n", time.Since(began).Round(time.Second))
	return errors.Join(s.members(), s.takes("replaced", s.machines...), s.arrived(time.Minute))
}

// again pastes the set-up's blocks for each machine on a new one, and pairs it.
func (s *stage) again(m *machine, invite string) error {
	for _, b := range s.page[setUpHeading] {
		var err error
		switch {
		case b.where == "each machine":
			err = m.paste(b.text)
		case b.where == "the primary":
			_, _, _, there := s.roles()
			err = errors.Join(there, s.pair(invite, m))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// upgrade installs the next version on one machine after the other while mail comes.
func (s *stage) upgrade() error {
	for _, m := range s.machines {
		began := time.Now()
		if err := m.paste("apt-get install -y /stage/understudy_0.0.2_amd64.deb\n"); err != nil {
			return err
		}
		if err := m.shows(time.Minute, "understudy version; systemctl is-active understudy", "understudy 0.0.2", "active"); err != nil {
			return err
		}
		if err := s.takes("upgraded", m); err != nil {
			return err
		}
		fmt.Printf("-- %s upgraded within %v\n", m.name, time.Since(began).Round(time.Second))
	}
	return errors.Join(s.members(), s.arrived(time.Minute))
}

// back takes one machine's mail out of the database into a directory.
func (s *stage) back() error {
	leaves := s.machines[1]
	if err := errors.Join(s.primaryUp(false), s.mails(5, leaves)); err != nil {
		return err
	}
	for _, b := range s.page["Back to a directory"] {
		if err := leaves.paste(b.text); err != nil {
			return err
		}
	}
	if err := leaves.shows(time.Minute, "understudy queue list | wc -l; understudy fleet 2>&1 || true", "no database is shared"); err != nil {
		return err
	}
	return errors.Join(s.takes("alone", leaves), s.primaryUp(true), s.arrived(2*time.Minute))
}

// remove takes a machine away for good.
func (s *stage) remove() error {
	gone := s.machines[1]
	for _, b := range s.page["Remove a member for good"] {
		on := s.machines[0]
		switch b.where {
		case "the machine that goes":
			on = gone
		case "the primary":
			on = s.primary
		}
		if err := on.paste(strings.ReplaceAll(b.text, "mx4", "mx2")); err != nil {
			return err
		}
	}
	out, err := s.machines[0].do("sleep 5; understudy fleet")
	fmt.Print(out)
	if strings.Contains(out, gone.name) {
		err = errors.Join(err, fmt.Errorf("%s is still listed", gone.name))
	}
	return err
}
