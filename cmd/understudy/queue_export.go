package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/queue"
)

// filterFlags choose among the queue's messages.
type filterFlags struct {
	To        string        `name:"to" placeholder:"PATTERN" help:"Only messages with a recipient like this; * stands for anything, as in '*@example.org'."`
	From      string        `name:"from" placeholder:"PATTERN" help:"Only messages from a sender like this; '<>' is the null sender."`
	State     string        `name:"state" enum:"queued,deferred,held," default:"" help:"Only messages with a recipient in this state: queued, deferred or held."`
	OlderThan time.Duration `name:"older-than" placeholder:"DURATION" help:"Only messages accepted longer ago than this, such as 90m or 48h."`
	NewerThan time.Duration `name:"newer-than" placeholder:"DURATION" help:"Only messages accepted since then."`
}

func (f filterFlags) check() error {
	for _, p := range []string{f.To, f.From} {
		if _, err := path.Match(p, ""); err != nil {
			return mistakes{fmt.Errorf("pattern %q: %w", p, err)}
		}
	}
	return nil
}

// none says that no message is left to show.
func (f filterFlags) none() string {
	if f == (filterFlags{}) {
		return "The queue is empty."
	}
	return "No such message."
}

func (f filterFlags) match(i queue.Info) bool {
	at := time.Since(i.Accepted)
	if f.OlderThan > 0 && at < f.OlderThan || f.NewerThan > 0 && at > f.NewerThan {
		return false
	}
	if f.From != "" && !like(f.From, i.From) && (f.From != "<>" || i.From != "") {
		return false
	}
	if f.To == "" && f.State == "" {
		return true
	}
	for _, r := range i.Recipients {
		if (f.To == "" || like(f.To, r.Address)) && (f.State == "" || f.State == r.State) {
			return true
		}
	}
	return false
}

// like matches addresses without regard to case; "/" is nothing special in one.
func like(pattern, address string) bool {
	slash := strings.NewReplacer("/", "\x01")
	ok, err := path.Match(strings.ToLower(slash.Replace(pattern)), strings.ToLower(slash.Replace(address)))
	return ok && err == nil
}

type queueExportCmd struct {
	daemonFlag
	filterFlags
	Maildir string `name:"maildir" placeholder:"DIR" help:"Into this maildir, which is made when missing. What is there already is left alone, so the same command again adds what is new." xor:"to-where" required:""`
	Mbox    string `name:"mbox" placeholder:"FILE" help:"Into this file, which must not exist; - is standard output." xor:"to-where" required:""`
}

func (queueExportCmd) Help() string {
	return `Reads mail out during an outage; the queue stays as it is, and all of it is relayed when the primary is back. It works beside a running daemon and, as root or as the daemon's user, without one.

Each message begins with Return-Path and a Delivered-To for each recipient that waits for it.

Examples:

    understudy queue export --maildir ~/waiting --to 'alice@example.org'
    understudy queue export --mbox - --newer-than 30m | less`
}

func (c *queueExportCmd) Run(ctx context.Context, out io.Writer) error {
	if err := c.check(); err != nil {
		return err
	}
	s, err := c.source()
	if err != nil {
		return err
	}
	defer s.Close()
	write, done, err := c.writer(out)
	if err != nil {
		return err
	}
	var wrong []error
	added, there := 0, 0
	p := newProgress("message", s.Count(ctx))
	err = s.Messages(ctx, func(i queue.Info) error {
		p.step(1)
		if !c.match(i) {
			return nil
		}
		if c.has(i) {
			there++
			return nil
		}
		body, err := s.Body(ctx, i.ID)
		if err == nil {
			err = write(i, body)
			body.Close()
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("message %s: %w", i.ID, err))
			return ctx.Err()
		}
		added++
		return nil
	})
	p.end()
	if derr := done(); err == nil {
		err = derr
	}
	if c.Mbox != "-" {
		fmt.Fprintln(out, exported(added, there))
	}
	return errors.Join(append(wrong, err)...)
}

func (c *queueExportCmd) writer(out io.Writer) (write func(queue.Info, io.Reader) error, done func() error, err error) {
	if c.Maildir != "" {
		for _, dir := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(c.Maildir, dir), 0o700); err != nil {
				return nil, nil, err
			}
		}
		return c.toMaildir, func() error { return nil }, nil
	}
	w := bufio.NewWriter(out)
	done = w.Flush
	if c.Mbox != "-" {
		f, err := os.OpenFile(c.Mbox, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, nil, err
		}
		w.Reset(f)
		done = func() error { return errors.Join(w.Flush(), f.Sync(), f.Close()) }
	}
	return func(i queue.Info, body io.Reader) error {
		from := i.From
		if from == "" || strings.ContainsAny(from, " \t") {
			from = "MAILER-DAEMON"
		}
		fmt.Fprintf(w, "From %s %s\n", from, i.Accepted.UTC().Format(time.ANSIC))
		if err := copyMail(w, i, body, true); err != nil {
			return err
		}
		_, err := io.WriteString(w, "\n")
		return err
	}, done, nil
}

func maildirName(i queue.Info) string {
	return fmt.Sprintf("%d.%s.understudy", i.Accepted.Unix(), filepath.Base(i.ID))
}

// has says that the maildir has the message, read or not.
func (c *queueExportCmd) has(i queue.Info) bool {
	if c.Maildir == "" {
		return false
	}
	name := maildirName(i)
	read, _ := filepath.Glob(filepath.Join(escapeGlob(c.Maildir), "cur", name+"*")) // its pattern is well-formed
	_, err := os.Lstat(filepath.Join(c.Maildir, "new", name))
	return len(read) > 0 || err == nil
}

// toMaildir writes into tmp and moves to new, as maildirs want it.
func (c *queueExportCmd) toMaildir(i queue.Info, body io.Reader) error {
	name := maildirName(i)
	tmp := filepath.Join(c.Maildir, "tmp", name)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	if err := errors.Join(copyMail(w, i, body, false), w.Flush(), f.Sync(), f.Close()); err != nil {
		os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, filepath.Join(c.Maildir, "new", name))
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// copyMail writes a message with local line ends and its envelope in front.
// In an mbox, lines that look like the start of a message get a ">" (mboxrd).
func copyMail(w *bufio.Writer, i queue.Info, body io.Reader, mbox bool) error {
	fmt.Fprintf(w, "Return-Path: <%s>\n", oneLine(i.From))
	for _, r := range i.Recipients {
		fmt.Fprintf(w, "Delivered-To: %s\n", oneLine(r.Address))
	}
	r := bufio.NewReader(body)
	for {
		line, err := r.ReadSlice('\n')
		whole := err == nil
		if mbox && bytes.HasPrefix(bytes.TrimLeft(line, ">"), []byte("From ")) {
			w.WriteByte('>')
		}
		for !whole { // a line longer than the buffer, or the end
			w.Write(line)
			if err != bufio.ErrBufferFull {
				break
			}
			line, err = r.ReadSlice('\n')
			whole = err == nil
		}
		switch {
		case whole:
			w.Write(bytes.TrimSuffix(line[:len(line)-1], []byte("\r")))
			w.WriteByte('\n')
		case err == io.EOF:
			return nil
		default:
			return err
		}
	}
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return '?'
		}
		return r
	}, s)
}
