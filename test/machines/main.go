// Machines follows docs/FLEET.md word for word: three machines with Debian and a
// systemd each, in containers, and a primary with a Postfix. It pastes the blocks of
// the page where their first lines say, goes through what may fail, and through the
// runbook. It needs root, debootstrap, systemd-nspawn and the network of a Debian
// mirror; what it downloads stays in its directory.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	dir := flag.String("dir", "dist/machines", "where the machines are, and what is downloaded")
	keep := flag.Bool("keep", false, "leave the machines running at the end, until a SIGINT")
	only := flag.String("only", "", "end after this step")
	flag.Parse()
	abs, err := filepath.Abs(*dir)
	if err == nil {
		err = run(abs, *only, *keep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(dir, only string, keep bool) error {
	page, err := readPage("docs/FLEET.md")
	if err != nil {
		return err
	}
	if err := prepare(dir); err != nil {
		return err
	}
	s := &stage{dir: dir, page: page, began: time.Now(), sent: map[string]bool{}}
	defer s.end()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- s.play(only) }()
	select {
	case <-interrupted:
		return nil
	case err = <-done:
	}
	if keep {
		fmt.Println(err)
		<-interrupted
	}
	return err
}

type step struct {
	name string
	do   func() error
}

func (s *stage) play(only string) error {
	for _, st := range []step{
		{"boot", s.boot},
		{"primary", s.setUpPrimary},
		{"set-up", s.setUp},
		{"mail", s.mail},
		{"faults", s.faults},
		{"power cut", s.powerCut},
		{"replace", s.replace},
		{"upgrade", s.upgrade},
		{"back", s.back},
		{"remove", s.remove},
	} {
		began := time.Now()
		fmt.Printf("== %s\n", st.name)
		if err := st.do(); err != nil {
			return fmt.Errorf("%s: %w", st.name, err)
		}
		fmt.Printf("== %s: done after %v\n", st.name, time.Since(began).Round(time.Second))
		if st.name == only {
			return nil
		}
	}
	return nil
}
