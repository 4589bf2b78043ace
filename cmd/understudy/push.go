package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/doctor"
	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/push"
	"github.com/understudy-mx/understudy/internal/pushed"
	"github.com/understudy-mx/understudy/internal/service"
	"github.com/understudy-mx/understudy/metrics"
)

// pushDesk takes lists of recipients: a part of a daemon and of a publisher. nil
// takes none.
type pushDesk struct {
	store  *pushed.Store
	server *push.Server
	door   net.Listener
}

// pushDir holds the lists that are pushed.
func pushDir(cfg *config.Config) string { return filepath.Join(cfg.StateDir, "push") }

// openPush opens the store and the door; nil where nothing is pushed.
func openPush(cfg *config.Config, log *slog.Logger, m *metrics.Metrics) (*pushDesk, error) {
	c := cfg.Push
	if c.Listen == "" {
		return nil, nil
	}
	store, err := pushed.Open(pushed.Options{Dir: pushDir(cfg), Limits: pushLimits(cfg), Unguarded: cfg.IsPublisher})
	if err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	server, err := push.New(push.Options{Store: store, TLSCert: c.TLSCert, TLSKey: c.TLSKey, Log: log, Metrics: m})
	if err != nil {
		return nil, mistakes{cfg.Mistake("push.tls_cert", "%v", err)}
	}
	door, err := service.Listen(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	return &pushDesk{store, server, door}, nil
}

// digest is that of a policy with the lists that were pushed here.
func (p *pushDesk) digest(policy string) string {
	if p == nil || policy == "" {
		return policy
	}
	sum := sha256.New()
	fmt.Fprintln(sum, policy)
	for _, l := range p.store.Status() {
		fmt.Fprintln(sum, l.Domain, l.ETag, l.Stale, l.Staged != nil)
	}
	return fmt.Sprintf("sha256:%x", sum.Sum(nil)[:8])
}

// lists is the store, nil for none.
func (p *pushDesk) lists() *pushed.Store {
	if p == nil {
		return nil
	}
	return p.store
}

func (p *pushDesk) close() {
	if p != nil {
		p.door.Close()
	}
}

// join makes it a part of a process.
func (p *pushDesk) join(f *service.Frame) {
	if p == nil {
		return
	}
	f.Listening("push", p.door)
	f.Front("push", func(ctx context.Context) error { return p.server.Serve(ctx, p.door) })
	f.Front("stale lists", p.server.Run)
}

type pushCmd struct {
	Send    pushSendCmd    `cmd:"" default:"withargs" help:"Push a list of recipients to a secondary or a publisher (the default)."`
	List    pushListCmd    `cmd:"" help:"Show the lists that were pushed here."`
	Token   pushTokenCmd   `cmd:"" help:"Make the token with which a domain's list is pushed here."`
	Revoke  pushRevokeCmd  `cmd:"" help:"End a domain's token."`
	Approve pushApproveCmd `cmd:"" help:"Let a mass deletion in a list take effect."`
	Reject  pushRejectCmd  `cmd:"" help:"Refuse a mass deletion: the list before comes back."`
}

// errStaged ends with exit code 3.
var errStaged = errors.New("the list was taken, and deletes so much that the operator there must confirm: `understudy push list` there")

type pushSendCmd struct {
	Domain    string        `arg:"" help:"The domain of the addresses."`
	File      string        `arg:"" optional:"" default:"-" help:"The list, one address a line; - is standard input."`
	URL       string        `name:"url" required:"" placeholder:"URL" help:"The server, such as https://mx2.example.org:9628."`
	TokenFile string        `required:"" placeholder:"FILE" help:"File with the token that understudy push token printed there."`
	CA        string        `name:"ca" placeholder:"FILE" help:"PEM file with the certificates to trust, instead of the system's."`
	Cache     string        `placeholder:"FILE" help:"Keep the pushed list here, so that only a difference is sent next time."`
	Tries     int           `default:"5" help:"How often to try while the server is busy or can't be reached."`
	Timeout   time.Duration `default:"10m" help:"How long to try at most."`
	DryRun    bool          `help:"Read and check the list, say what would be pushed, and push nothing."`
}

func (pushSendCmd) Help() string {
	return `Pushes the whole list of a domain's recipients; who isn't in it any more is removed. The list is checked before anything is sent: an empty one, a bad line or an address of another domain ends it. What is pushed takes effect whole or not at all. A list that the server has already is only confirmed, so push at least once in stale_after even if nothing has changed.

Exit status: 0 the list is in force; 1 it could not be pushed, and the old one stays; 2 the list or the command line is wrong; 3 it deletes so much that the server's operator must confirm: until then unknown recipients are put off there.

Examples:

    contrib/list-recipients google --key-file sa.json --admin me@example.org example.org > list && understudy push example.org list --url https://mx2.example.org:9628 --token-file token
    understudy push example.org list --dry-run --url https://mx2.example.org:9628 --token-file token --cache pushed`
}

func (c *pushSendCmd) Run(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	domain := strings.ToLower(c.Domain)
	list, err := c.read(domain)
	if err != nil {
		return mistakes{err}
	}
	client, err := c.client()
	if err != nil {
		return mistakes{err}
	}
	before, err := c.cached(domain)
	if err != nil {
		return mistakes{err}
	}
	if c.DryRun {
		added, removed := push.Difference(before, list)
		_, err := fmt.Fprintf(out, "%s: %d addresses, sha256:%s; %d more and %d fewer than %s\n", domain, len(list), pushed.ETag(list)[:16], len(added), len(removed), "the cached list")
		return err
	}
	a, sent, err := client.Push(ctx, domain, list, before)
	if err != nil {
		return err
	}
	if c.Cache != "" {
		if err := service.ReplaceFile(c.Cache, []byte(strings.Join(list, "\n")+"\n")); err != nil {
			return fmt.Errorf("pushed, but not kept for the next time: %w", err)
		}
	}
	if a.Staged != nil {
		fmt.Fprintf(out, "%s: %d of %d recipients would go.\n", domain, a.Staged.Removed, a.Staged.Of)
		return errStaged
	}
	how := map[string]string{"PUT": "pushed whole", "PATCH": "pushed as a difference", "confirmed": "confirmed"}[sent]
	_, err = fmt.Fprintf(out, "%s: %d recipients, %s.\n", domain, a.Count, how)
	return err
}

func (c *pushSendCmd) read(domain string) ([]string, error) {
	name, in := "standard input", io.ReadCloser(os.Stdin)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, err
		}
		name, in = c.File, f
	}
	defer in.Close()
	list, err := push.ReadList(in, domain)
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return list, err
}

func (c *pushSendCmd) client() (*push.Client, error) {
	if !strings.HasPrefix(c.URL, "https://") {
		return nil, fmt.Errorf("--url: %q is no https:// address", c.URL)
	}
	b, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return nil, err
	}
	if fi, err := os.Stat(c.TokenFile); err == nil && fi.Mode()&0o077 != 0 {
		fmt.Fprintf(os.Stderr, "understudy: others may read %s: chmod go= %[1]s\n", printable(c.TokenFile))
	}
	token := strings.TrimSpace(strings.TrimPrefix(string(b), "\ufeff"))
	if token == "" || strings.ContainsFunc(token, envelope.Unseen) {
		return nil, fmt.Errorf("--token-file: %s has no token", c.TokenFile)
	}
	client := &push.Client{URL: c.URL, Token: token, Tries: max(1, c.Tries), Say: func(text string) { fmt.Fprintln(os.Stderr, "understudy:", printable(text)+"; trying again") }}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, err
		}
		client.Roots = x509.NewCertPool()
		if !client.Roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca: %s has no certificate", c.CA)
		}
	}
	return client, nil
}

// cached reads the list that was pushed before; a damaged one is as good as none.
func (c *pushSendCmd) cached(domain string) ([]string, error) {
	if c.Cache == "" {
		return nil, nil
	}
	f, err := os.Open(c.Cache)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := push.ReadList(f, domain)
	if err != nil {
		return nil, nil
	}
	return list, nil
}

// pushFlag is the flag -c of the commands about lists that are pushed here.
type pushFlag struct {
	Conf string `name:"config" short:"c" placeholder:"FILE" default:"${config}" help:"The configuration file, of a secondary or of a publisher (default: ${config})."`
}

func (f pushFlag) ask(do func(operator.Pushed) error) error {
	cfg, err := loadConfig(f.Conf)
	if err != nil {
		return err
	}
	c := pushedOf(cfg)
	defer c.Close()
	return do(c)
}

func pushedOf(cfg *config.Config) operator.Pushed {
	if cfg.IsPublisher {
		return operator.Pushed{Client: publisherOf(cfg).Client}
	}
	return operator.Pushed{Client: daemonOf(cfg).Client}
}

type pushTokenCmd struct {
	Domain string `arg:"" help:"One of the domains under [push]."`
	Rotate bool   `help:"Keep the old token good for a week."`
	pushFlag
}

func (pushTokenCmd) Help() string {
	return `Prints a new token, which is good for this domain's list alone. Here only its hash is kept, so write it into a file that only the pushing user can read. The domain's token before ends: at once, or with --rotate after a week, or with understudy push revoke --former, so that whoever pushes can change over.`
}

func (c *pushTokenCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Pushed) error {
		token, err := p.NewToken(ctx, strings.ToLower(c.Domain), c.Rotate)
		if err == nil {
			_, err = fmt.Fprintln(out, token)
		}
		return err
	})
}

type pushRevokeCmd struct {
	Domain string `arg:"" help:"The domain whose token ends; its list stays, and grows stale."`
	Former bool   `help:"End only the old token that --rotate has left."`
	pushFlag
}

func (c *pushRevokeCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Pushed) error {
		return say(out, p.RevokeToken(ctx, strings.ToLower(c.Domain), c.Former), "The token has ended.")
	})
}

type pushApproveCmd struct {
	Domain string `arg:"" help:"The domain; understudy push list shows what would go."`
	pushFlag
}

func (c *pushApproveCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Pushed) error {
		return say(out, p.Approve(ctx, strings.ToLower(c.Domain)), "The deletion is in force.")
	})
}

type pushRejectCmd struct {
	Domain string `arg:"" help:"The domain; the list before the deletion comes back."`
	pushFlag
}

func (c *pushRejectCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Pushed) error {
		return say(out, p.Reject(ctx, strings.ToLower(c.Domain)), "The list before is in force again; the one with the deletion is refused from now on.")
	})
}

func say(out io.Writer, err error, done string) error {
	if err == nil {
		_, err = fmt.Fprintln(out, done)
	}
	return err
}

type pushListCmd struct {
	pushFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (c *pushListCmd) Run(ctx context.Context, out io.Writer) error {
	return c.ask(func(p operator.Pushed) error {
		all, err := p.Lists(ctx)
		return render(out, c.JSON, all, err, printPushed)
	})
}

func printPushed(out io.Writer, all []pushed.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "DOMAIN\tRECIPIENTS\tPUSHED\tSTATE")
	for _, s := range all {
		when, state := "never", "no list yet: all recipients are answered 450"
		if s.ETag != "" {
			when, state = age(time.Since(s.Pushed))+" ago", "in force"
		}
		switch {
		case s.Staged != nil:
			state = fmt.Sprintf("%d of %d recipients would go: unknown recipients are answered 450 until `understudy push approve` or `reject`", s.Staged.Removed, s.Staged.Of)
		case s.Stale:
			state = "stale: unknown recipients are answered 450"
		}
		if !s.Token {
			state += "; no token, see `understudy push token`"
		}
		if !s.Former.IsZero() {
			state += "; the token before ends in " + age(time.Until(s.Former))
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", s.Domain, s.Count, when, state)
	}
	return w.Flush()
}

// pushOf is what a doctor looks at of pushing. files are those that the policy is
// made of.
func pushOf(ctx context.Context, cfg *config.Config, p operator.Pushed, files []string) doctor.Push {
	dir := pushDir(cfg)
	reads := map[string]bool{} // domains
	for _, name := range files {
		domain, list := strings.CutSuffix(filepath.Base(name), pushed.ListName(""))
		if list && sameDir(filepath.Dir(name), dir) {
			reads[domain] = true
		}
	}
	d := doctor.Push{Listen: cfg.Push.Listen, Dir: dir}
	for _, domain := range cfg.Push.Domains {
		if cfg.Push.Listen == "" {
			break
		}
		if !reads[domain] {
			d.Unread = append(d.Unread, domain)
		}
		delete(reads, domain)
	}
	d.Untaken = slices.Sorted(maps.Keys(reads))
	if cfg.Push.Listen == "" {
		return d
	}
	all, _ := p.Lists(ctx) // an error says that nobody runs here, which is found anyway
	for _, s := range all {
		l := doctor.PushedList{Domain: s.Domain, Pushed: s.Pushed, Stale: s.Stale, Token: s.Token}
		if s.Staged != nil {
			l.Staged = fmt.Sprintf("%d of %d recipients would go", s.Staged.Removed, s.Staged.Of)
		}
		d.Lists = append(d.Lists, l)
	}
	return d
}

// sameDir tells whether two names are one directory, which systemd's state directory
// with a dynamic user is by two names.
func sameDir(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	if err1 != nil || err2 != nil {
		return filepath.Clean(a) == filepath.Clean(b)
	}
	return os.SameFile(x, y)
}

// sourceFiles are the files that [[source]] names.
func sourceFiles(cfg *config.Config) (files []string) {
	for _, s := range cfg.Sources {
		if s.Type == "file" {
			files = append(files, s.Path)
		}
	}
	return files
}
