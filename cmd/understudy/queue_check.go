package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/understudy-mx/understudy/queue"
)

type queueVerifyCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"As a JSON object."`
}

func (queueVerifyCmd) Help() string {
	return `Reads every message in full and compares it with its checksum, and the index and the counts with the messages. It changes nothing. The daemon must be stopped. Exit code 1 when something is wrong.`
}

func (c *queueVerifyCmd) Run(ctx context.Context, out io.Writer) error {
	v, err := c.view()
	if errors.Is(err, queue.ErrLocked) {
		return errors.New("the daemon runs: stop it first (it checks by itself when it starts)")
	}
	if err != nil {
		return err
	}
	defer v.Close()
	p := newProgress("message", v.Count())
	v.Checked = func() { p.step(1) }
	r, err := v.Verify(ctx)
	p.end()
	if err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(out, r)
	} else {
		for _, p := range r.Problems {
			fmt.Fprintln(out, printable(p))
		}
		fmt.Fprintf(out, "%s, %s, %d quarantined\n", plural(r.Messages, "message"), bytesText(r.Bytes), r.Quarantined)
	}
	if n := len(r.Problems) + r.More; n > 0 && err == nil {
		err = fmt.Errorf("%s found", plural(n, "problem"))
	}
	return err
}

type quarantineCmd struct {
	List   quarantineListCmd   `cmd:"" help:"List what was put aside, and why."`
	Export quarantineExportCmd `cmd:"" help:"Copy what is left of it into files."`
}

func (quarantineCmd) Help() string {
	return `A message whose record or content is damaged is put aside, counted (understudy_queue_quarantined_records_total) and never deleted. These commands work beside a running daemon and without one.`
}

type quarantineListCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"A JSON object a message."`
}

func (c *quarantineListCmd) Run(ctx context.Context, out io.Writer) error {
	s, err := c.source()
	if err != nil {
		return err
	}
	defer s.Close()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	n := 0
	err = s.Quarantined(ctx, func(q queue.Quarantine) error {
		if c.JSON {
			return printJSON(out, q)
		}
		if n++; n == 1 {
			fmt.Fprintln(w, "NUMBER\tID\tFROM\tTO\tCAUSE")
		}
		from, to, id := "-", "-", "-"
		if q.Message != nil {
			from, to, id = "<"+printable(q.Message.From)+">", firstRecipient(*q.Message), q.ID
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", q.Seq, id, from, to, printable(q.Cause))
		return nil
	})
	if err != nil {
		return err
	}
	if n == 0 && !c.JSON {
		fmt.Fprintln(w, "Nothing is quarantined.")
	}
	return w.Flush()
}

type quarantineExportCmd struct {
	daemonFlag
	Dir string `arg:"" help:"Where to: NUMBER.eml is the content as far as it is there, NUMBER.record the record. Files that exist are left alone."`
}

func (c *quarantineExportCmd) Run(ctx context.Context, out io.Writer) error {
	s, err := c.source()
	if err != nil {
		return err
	}
	defer s.Close()
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	added, there := 0, 0
	err = s.Quarantined(ctx, func(q queue.Quarantine) error {
		saved, existed := 0, 0
		for part, ext := range map[string]string{"record": ".record", "body": ".eml"} {
			r, err := s.QuarantinePart(ctx, q.Seq, part)
			if err != nil {
				fmt.Fprintf(out, "number %d: no %s: %v\n", q.Seq, part, err)
				continue
			}
			err = save(filepath.Join(c.Dir, fmt.Sprint(q.Seq)+ext), r)
			r.Close()
			switch {
			case err == nil:
				saved++
			case errors.Is(err, os.ErrExist):
				existed++
			default:
				return fmt.Errorf("number %d: %w", q.Seq, err)
			}
		}
		switch {
		case saved > 0:
			added++
		case existed > 0:
			there++
		}
		return nil
	})
	fmt.Fprintln(out, exported(added, there))
	return err
}

// exported says how many messages an export added, and how many it found there.
func exported(added, there int) string {
	s := plural(added, "message") + " exported"
	if there > 0 {
		s += fmt.Sprintf(", %d there already", there)
	}
	return s
}

// save makes a new file.
func save(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}
