package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/understudy-mx/understudy/internal/testmx"
)

// Peers of the measurement of the policy channel, beside understudy.
const (
	rsync   = "rsync -z"
	postmap = "postmap"
)

// syncSizes are how many recipients are carried, and how many rounds of each are run.
var syncSizes = []struct{ recipients, rounds int }{{1_000_000, 3}, {10_000_000, 1}}

// syncPatience bounds the whole measurement, stepPatience each step of it.
const (
	syncPatience = 40 * time.Minute
	stepPatience = 8 * time.Minute
)

// channel measures how a list of recipients, and then one more of them, gets
// from a primary to a secondary: by understudy, by rsync as a file, and what
// postmap needs to make a table of that file there. All bytes on the wire go
// through a meter on the loopback interface.
func (b *bench) channel(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, syncPatience)
	defer cancel()
	for _, size := range syncSizes {
		if !b.only.MatchString(fmt.Sprintf("%d M", size.recipients/1_000_000)) {
			continue
		}
		l := newList(size.recipients)
		for round := range size.rounds {
			for _, step := range []func(context.Context, *list, string) ([2]figures, string, error){b.byUnderstudy, b.byRsync, b.byPostmap} {
				dir := filepath.Join(b.dir, "run")
				if err := os.Mkdir(dir, 0o755); err != nil {
					return err
				}
				f, kind, err := step(ctx, l, dir)
				err = errors.Join(err, os.RemoveAll(dir))
				if err != nil {
					return fmt.Errorf("%d recipients, %s: %w", size.recipients, kind, err)
				}
				for i, name := range []string{"all of %d M", "one more of %d M"} {
					f[i].Round = round
					b.report.add(cell{name: fmt.Sprintf(name, size.recipients/1_000_000)}, kind, f[i])
					log.Printf("%-18s %-10s %7.2f s %12.0f octets, peak %.0f and %.0f MiB", fmt.Sprintf(name, size.recipients/1_000_000), kind, f[i].Seconds, f[i].Wire, f[i].Sender, f[i].Peak)
				}
			}
		}
	}
	return nil
}

// list is a list of recipients.
type list struct {
	domains []string
	all     []string // sorted
}

// newList makes n addresses that look like people's, of 1,000 domains.
func newList(n int) *list {
	syllables := strings.Fields("an ba bel co da de el fa gi han in jo ka la lo ma mi na no ol pe ra ri sa so ta ti ul va wi xa yo ze")
	r := rand.New(rand.NewPCG(1, 2))
	word := func() string {
		return syllables[r.IntN(len(syllables))] + syllables[r.IntN(len(syllables))] + syllables[r.IntN(len(syllables))]
	}
	l := &list{}
	for i := range 1000 {
		l.domains = append(l.domains, fmt.Sprintf("d%03d.example.org", i))
	}
	seen := make(map[string]bool, n)
	for len(l.all) < n {
		a := word() + "." + word() + "@" + l.domains[r.IntN(len(l.domains))]
		if !seen[a] {
			seen[a] = true
			l.all = append(l.all, a)
		}
	}
	slices.Sort(l.all)
	return l
}

// write writes the list, with one recipient more in its middle or without; each
// line ends as a table of Postfix wants it, or not.
func (l *list) write(file string, more bool, value string) error {
	f, err := os.Create(file + ".new")
	if err != nil {
		return err
	}
	w := &strings.Builder{}
	for i, a := range l.all {
		if w.WriteString(a + value + "\n"); more && i == len(l.all)/2 {
			w.WriteString(strings.Replace(a, "@", ".x@", 1) + value + "\n") // no word of newList has one letter
		}
		if w.Len() > 1<<20 || i == len(l.all)-1 {
			if _, err := io.WriteString(f, w.String()); err != nil {
				return err
			}
			w.Reset()
		}
	}
	return errors.Join(f.Close(), os.Rename(file+".new", file))
}

// byUnderstudy pairs a secondary with a publisher, from join to the policy in
// force, and then changes the publisher's file.
func (b *bench) byUnderstudy(ctx context.Context, l *list, dir string) (f [2]figures, kind string, err error) {
	kind = understudy
	ctx, cancel := context.WithTimeout(ctx, stepPatience)
	defer cancel()
	primary := &peer{kind: kind, dir: filepath.Join(dir, "primary"), addr: testmx.FreeAddr(), web: testmx.FreeAddr()}
	secondary := &peer{kind: kind, dir: filepath.Join(dir, "secondary"), addr: testmx.FreeAddr(), web: testmx.FreeAddr()}
	line, err := testmx.NewLink("127.0.0.1:0", primary.addr, 0)
	if err != nil {
		return f, kind, err
	}
	defer line.Close()
	file := filepath.Join(primary.dir, "recipients")
	if err := b.configurePair(l, primary, secondary, line.Addr().String()); err != nil {
		return f, kind, err
	}
	for _, p := range []*peer{primary, secondary} {
		if err := p.start(); err != nil {
			return f, kind, err
		}
		defer p.stop()
	}
	if err := until(ctx, primary, "understudy_publish_version", 1); err != nil {
		return f, kind, err
	}
	out, err := exec.CommandContext(ctx, b.binary, "invite", "-c", filepath.Join(primary.dir, "conf.toml")).Output()
	if err != nil {
		return f, kind, fmt.Errorf("invite: %w", err)
	}
	begin, before := time.Now(), int64(0)
	measure := func(version float64) (f figures, err error) {
		err = until(ctx, secondary, "understudy_policy_version", version)
		f = figures{Seconds: time.Since(begin).Seconds(), Wire: float64(line.Octets.Load() - before),
			Sender: float64(peak(primary.group())) / (1 << 20), Peak: float64(peak(secondary.group())) / (1 << 20)}
		return f, err
	}
	if out, err := exec.CommandContext(ctx, b.binary, "join", strings.Fields(string(out))[2], "-c", filepath.Join(secondary.dir, "conf.toml")).CombinedOutput(); err != nil {
		return f, kind, fmt.Errorf("join: %w\n%s", err, out)
	}
	if f[0], err = measure(1); err != nil {
		return f, kind, err
	}
	if err := l.write(file, true, ""); err != nil {
		return f, kind, err
	}
	begin, before = time.Now(), line.Octets.Load()
	f[1], err = measure(2)
	return f, kind, err
}

// configurePair writes both ends' files; the secondary reaches the primary at
// address.
func (b *bench) configurePair(l *list, primary, secondary *peer, address string) error {
	policy := fmt.Sprintf("domains = [%s]\nrecipients_file = \"recipients\"\n", `"`+strings.Join(l.domains, `", "`)+`"`)
	publish := fmt.Sprintf("state_dir = %q\n[publish]\nlisten = %q\naddress = %q\n[policy]\nfile = \"policy.toml\"\n[metrics]\nlisten = %q\n",
		filepath.Join(primary.dir, "state"), primary.addr, address, primary.web)
	serve := fmt.Sprintf("hostname = \"mx2.example.org\"\nstate_dir = %q\n[smtp]\nlisten = [%q]\n[sync]\ndomains = [\".example.org\"]\n[primary]\naddress = \"127.0.0.1:1\"\n[metrics]\nlisten = %q\n",
		filepath.Join(secondary.dir, "state"), secondary.addr, secondary.web)
	primary.argv = []string{b.binary, "publish", "-c", filepath.Join(primary.dir, "conf.toml")}
	secondary.argv = []string{b.binary, "serve", "-c", filepath.Join(secondary.dir, "conf.toml")}
	return errors.Join(os.Mkdir(primary.dir, 0o755), os.Mkdir(secondary.dir, 0o755),
		l.write(filepath.Join(primary.dir, "recipients"), false, ""),
		os.WriteFile(filepath.Join(primary.dir, "policy.toml"), []byte(policy), 0o644),
		os.WriteFile(filepath.Join(primary.dir, "conf.toml"), []byte(publish), 0o644),
		os.WriteFile(filepath.Join(secondary.dir, "conf.toml"), []byte(serve), 0o644))
}

// until waits for a metric of p to reach a value.
func until(ctx context.Context, p *peer, name string, value float64) error {
	for p.metric(name) < value {
		select {
		case <-p.run.Ended:
			return fmt.Errorf("%v ended", p.argv)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", name, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// byRsync copies the list as a file from a daemon, and then copies it again with
// a line more.
func (b *bench) byRsync(ctx context.Context, l *list, dir string) (f [2]figures, kind string, err error) {
	kind = rsync
	ctx, cancel := context.WithTimeout(ctx, stepPatience)
	defer cancel()
	addr := testmx.FreeAddr()
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(dir, "rsyncd.conf")
	err = os.WriteFile(conf, fmt.Appendf(nil, "use chroot = no\nlog file = %s/log\n[list]\npath = %s\nuid = %d\n", dir, dir, os.Getuid()), 0o644)
	if err != nil {
		return f, kind, err
	}
	file := filepath.Join(dir, "recipients")
	for i := range f {
		if err := l.write(file, i > 0, ""); err != nil {
			return f, kind, err
		}
		daemon := exec.CommandContext(ctx, "rsync", "--daemon", "--no-detach", "--address=127.0.0.1", "--port="+port, "--config="+conf)
		daemon.Cancel = func() error { return daemon.Process.Signal(syscall.SIGTERM) }
		sender, err := startPeak(daemon)
		if err != nil {
			return f, kind, err
		}
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if c, err := net.Dial("tcp", addr); err == nil {
				c.Close()
				break
			}
		}
		line, err := testmx.NewLink("127.0.0.1:0", addr, 0)
		if err != nil {
			return f, kind, err
		}
		begin := time.Now()
		client := exec.CommandContext(ctx, "rsync", "-z", "--no-whole-file", "rsync://"+line.Addr().String()+"/list/recipients", filepath.Join(dir, "copy"))
		receiver, err := startPeak(client)
		if err == nil {
			f[i].Peak, err = receiver()
		}
		f[i].Seconds, f[i].Wire = time.Since(begin).Seconds(), float64(line.Octets.Load())
		line.Close()
		_ = daemon.Cancel()       // it has ended when it can't be told to
		f[i].Sender, _ = sender() // its error is that signal
		if err != nil {
			return f, kind, err
		}
	}
	return f, kind, nil
}

// byPostmap makes a table of the list, which one line more means to do again.
func (b *bench) byPostmap(ctx context.Context, l *list, dir string) (f [2]figures, kind string, err error) {
	kind = postmap
	for i := range f {
		file := filepath.Join(dir, "recipients")
		if err := l.write(file, i > 0, " x"); err != nil {
			return f, kind, err
		}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(ctx, stepPatience)
		defer cancel()
		cmd := exec.CommandContext(ctx, "postmap", "hash:"+file)
		end, err := startPeak(cmd)
		if err == nil {
			f[i].Peak, err = end()
		}
		if f[i].Seconds = time.Since(begin).Seconds(); ctx.Err() == context.DeadlineExceeded {
			log.Printf("postmap was ended after %s", stepPatience)
			return [2]figures{f[i], f[i]}, kind, nil
		}
		if err != nil {
			return f, kind, err
		}
	}
	return f, kind, nil
}

// startPeak starts a command. end waits for it and returns the most that it or
// a child of it had resident, in MiB. A process' rusage would not do: it counts
// what the parent had at the fork.
func startPeak(c *exec.Cmd) (end func() (float64, error), err error) {
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		return nil, err
	}
	ended, most := make(chan error, 1), make(chan int64, 1)
	stop := make(chan struct{})
	go func() { ended <- c.Wait() }()
	go func() {
		rss := int64(0)
		for {
			select {
			case <-stop:
				most <- rss
				return
			case <-time.After(10 * time.Millisecond):
				rss = max(rss, peak(c.Process.Pid))
			}
		}
	}()
	return func() (float64, error) {
		err := <-ended
		close(stop)
		return float64(<-most) / (1 << 20), err
	}, nil
}

// printSync writes the table of the policy channel in Markdown.
func (r *report) printSync(w io.Writer) {
	fmt.Fprintf(w, "%s UTC, %s, %s in all. Medians [min–max].\n\n", r.When, r.Machine, r.Took)
	fmt.Fprintln(w, "| recipients | by | seconds | KiB on the wire | peak RSS of the sender, MiB | of the receiver, MiB |")
	fmt.Fprintln(w, "| --- | --- | ---: | ---: | ---: | ---: |")
	for _, c := range r.Cells {
		for _, kind := range []string{understudy, rsync, postmap} {
			of := func(figure func(figures) float64, format string) string { return c.of(kind, figure).show(format) }
			fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", c.Cell, kind,
				of(func(f figures) float64 { return f.Seconds }, "%.2f"), of(func(f figures) float64 { return f.Wire / 1024 }, "%.1f"),
				of(func(f figures) float64 { return f.Sender }, "%.0f"), of(most, "%.0f"))
		}
	}
}
