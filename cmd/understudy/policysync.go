package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/inforce"
	"github.com/understudy-mx/understudy/policy"
	policysync "github.com/understudy-mx/understudy/sync"
)

// answer sends v as JSON, or why there is none.
func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		control.Fail(w, http.StatusConflict, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only when the asker has gone
}

// syncStatus is the answer to GET /v1/sync/status.
type syncStatus struct {
	policysync.Status
	Counts map[string]uint64 `json:"counts"` // recipients by domain, "" for local names
}

// maxCounts bounds the domains in a status.
const maxCounts = 10_000

func boundCounts(counts map[string]uint64) {
	for i, d := range slices.Sorted(maps.Keys(counts)) {
		if i >= maxCounts {
			delete(counts, d)
		}
	}
}

// syncPages is what the control socket serves about the primary's policy. f is
// nil when the policy comes from a file.
func syncPages(f *inforce.Primary) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, do func(r *http.Request, p *policysync.Follower) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			var v any
			err := errors.New("the policy comes from policy.file, not from a primary; put domains = [...] under [sync] in its place and restart `understudy serve`")
			if f != nil {
				err = f.Use(func(p *policysync.Follower) (err error) {
					v, err = do(r, p)
					return err
				})
			}
			answer(w, v, err)
		})
	}
	handle("GET /v1/sync/status", func(_ *http.Request, p *policysync.Follower) (any, error) {
		s := syncStatus{p.Status(), p.Counts()}
		boundCounts(s.Counts)
		return s, nil
	})
	handle("GET /v1/sync/pending", func(_ *http.Request, p *policysync.Follower) (any, error) { return p.Pending(), nil })
	handle("POST /v1/sync/approve/{version}", decide((*policysync.Follower).Approve))
	handle("POST /v1/sync/reject/{version}", decide((*policysync.Follower).Reject))
	handle("GET /v1/sync/diff/{from}/{to}", func(r *http.Request, p *policysync.Follower) (any, error) {
		from, err1 := strconv.ParseUint(r.PathValue("from"), 10, 64)
		to, err2 := strconv.ParseUint(r.PathValue("to"), 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return p.Diff(from, to, 1000)
	})
	handle("POST /v1/sync/rotate", func(r *http.Request, p *policysync.Follower) (any, error) { return nil, p.RotateKey(r.Context()) })
	mux.HandleFunc("GET /v1/sync/snapshot", func(w http.ResponseWriter, _ *http.Request) { serveSnapshot(w, f) })
	mux.HandleFunc("POST /v1/sync/join", func(w http.ResponseWriter, r *http.Request) {
		if f == nil {
			control.Fail(w, http.StatusConflict, errors.New("the daemon was started without [sync]; restart `understudy serve`, then join"))
			return
		}
		joined, err := f.Join(r.Context(), r.URL.Query().Get("token"))
		answer(w, joined, err)
	})
	return mux
}

func decide(do func(*policysync.Follower, uint64) error) func(*http.Request, *policysync.Follower) (any, error) {
	return func(r *http.Request, p *policysync.Follower) (any, error) {
		n, err := strconv.ParseUint(r.PathValue("version"), 10, 64)
		if err != nil {
			return nil, err
		}
		return nil, do(p, n)
	}
}

func serveSnapshot(w http.ResponseWriter, f *inforce.Primary) {
	var s *policy.Snapshot
	if f != nil {
		s = f.Current()
	}
	if s == nil {
		control.Fail(w, http.StatusConflict, errors.New("the daemon has no policy from a primary"))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.Encode()) // fails only when the asker has gone
}

// fetchPolicy asks the daemon for the policy in force.
func fetchPolicy(ctx context.Context, cfg *config.Config) (*policy.Snapshot, error) {
	client := control.Dial(control.SocketPath(cfg.StateDir))
	defer client.Close()
	body, err := client.Stream(ctx, "GET", "/v1/sync/snapshot")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("read the policy in force: %w", err)
	}
	return policy.Decode("policy in force", bytes.NewReader(b), nil)
}

type policyStatusCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (policyStatusCmd) Help() string {
	return `Asks the running daemon how it follows its primary. State fresh: as the primary decides; stale: out of contact for longer than stale_after, unknown recipients are answered 450; none: no policy yet, clients are answered 421. Last change: when the content of the policy changed last, and in what; sources: when the primary read each of them last without a mistake.

On the primary, with the publisher's configuration, it asks the publisher what it publishes.

Examples:

    understudy policy status
    understudy policy status -c ` + publishConfig
}

func (c *policyStatusCmd) Run(ctx context.Context, out io.Writer) error {
	if cfg, err := config.Load(c.Conf); err == nil && cfg.IsPublisher {
		return c.published(ctx, out)
	}
	client, err := c.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	var s syncStatus
	if err := client.Call(ctx, "GET", "/v1/sync/status", &s); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(out, s)
	}
	now, err := lookAt(ctx, client)
	if err != nil {
		return err
	}
	if err := printFollower(out, &s); err != nil {
		return err
	}
	for _, line := range now.clientsUntold() {
		fmt.Fprintln(out, line)
	}
	return nil
}

func printFollower(out io.Writer, s *syncStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "State\t%s\n", s.State)
	if s.Staged != "" {
		fmt.Fprintf(w, "Mass deletion\t%s; see `understudy policy pending`\n", s.Staged)
	}
	fmt.Fprintf(w, "Primary\t%s, which calls us %s\nFingerprint\t%s\n", printable(s.Primary), printable(s.Name), s.Fingerprint)
	if s.Version > 0 {
		fmt.Fprintf(w, "Version\t%d (epoch %d), sha256:%s\n", s.Version, s.Epoch, shortDigest(s.Digest))
		fmt.Fprintf(w, "Vouched for\t%s\n", ago(s.Signed))
		printChange(w, s.LastChange)
		known := ""
		if s.Hashed {
			known = ", hashed: their addresses are not known here"
		}
		fmt.Fprintf(w, "Recipients\t%d in %s%s\n", s.Recipients, plural(s.Domains, "domain"), known)
	}
	printCounts(w, s.Counts)
	printSources(w, s.Sources)
	if s.Notice != "" {
		fmt.Fprintf(w, "The primary says\t%s\n", printable(s.Notice))
	}
	if s.Alarm != "" {
		fmt.Fprintf(w, "Alarm\t%s\n", printable(s.Error))
	}
	return w.Flush()
}

// published shows what the publisher offers.
func (c *policyStatusCmd) published(ctx context.Context, out io.Writer) error {
	client, err := publishFlag{c.Conf}.dial()
	if err != nil {
		return err
	}
	defer client.Close()
	var s policysync.PublisherStatus
	if err := client.Call(ctx, "GET", "/v1/status", &s); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(out, s)
	}
	return printPublisher(out, &s)
}

func printPublisher(out io.Writer, s *policysync.PublisherStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if s.Version == 0 {
		fmt.Fprintln(w, "Version\tnone: nothing is published, secondaries get no policy")
	} else {
		fmt.Fprintf(w, "Version\t%d (epoch %d), sha256:%s\n", s.Version, s.Epoch, shortDigest(s.Digest))
		fmt.Fprintf(w, "Signed\t%s\n", ago(s.Signed))
		printChange(w, s.LastChange)
		known := ""
		if s.Hashed {
			known = ", hashed for the secondaries"
		}
		fmt.Fprintf(w, "Recipients\t%d%s\n", s.Recipients, known)
	}
	printCounts(w, s.Counts)
	printSources(w, s.Sources)
	if s.Notice != "" {
		fmt.Fprintf(w, "Trouble\t%s\n", printable(s.Notice))
	}
	for _, text := range s.Wrong {
		fmt.Fprintf(w, "Listing contradicted\t%s\n", printable(text))
	}
	fmt.Fprintf(w, "Secondaries\t%d; see `understudy peers`\n", s.Peers)
	return w.Flush()
}

func shortDigest(digest string) string { return printable(digest[:min(16, len(digest))]) }

// ago spells a time and its age.
func ago(t time.Time) string {
	return fmt.Sprintf("%s (%s ago)", t.Local().Format(time.RFC3339), age(time.Since(t)))
}

func printChange(w io.Writer, c *policysync.LastChange) {
	if c == nil {
		return
	}
	what := []string{fmt.Sprintf("version %d to %d", c.From, c.To)}
	switch {
	case c.From == 0:
		what = []string{"the first version"}
	case !c.Compared:
		what = append(what, "not compared")
	default:
		what = append(what, fmt.Sprintf("+%d -%d recipients", c.Added, c.Removed))
	}
	if len(c.Tables) > 0 {
		what = append(what, "tables "+printable(strings.Join(c.Tables, " ")))
	}
	if c.Settings > 0 {
		what = append(what, plural(c.Settings, "line")+" of settings")
	}
	fmt.Fprintf(w, "Last change\t%s: %s\n", ago(c.At), strings.Join(what, ", "))
}

func printCounts(w io.Writer, counts map[string]uint64) {
	for _, d := range slices.Sorted(maps.Keys(counts)) {
		name := printable(d)
		if d == "" {
			name = "(local names)"
		}
		fmt.Fprintf(w, "  %s\t%d\n", name, counts[d])
	}
}

// printSources says when each source of the primary was read last.
func printSources(w io.Writer, list []policysync.Source) {
	if len(list) > 0 {
		fmt.Fprintln(w, "Sources\tas read last")
	}
	for _, s := range list {
		read := "not since the publisher started"
		if !s.Read.IsZero() {
			read = ago(s.Read)
		}
		if s.Failing {
			read += ", failing"
		}
		fmt.Fprintf(w, "  %s\t%s\n", printable(s.Name), read)
	}
}

// call asks the daemon and decodes its answer.
func (f daemonFlag) call(ctx context.Context, method, target string, v any) error {
	c, err := f.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Call(ctx, method, target, v)
}

type policyPendingCmd struct {
	daemonFlag
	JSON bool `name:"json" help:"As JSON."`
}

func (policyPendingCmd) Help() string {
	return `When the primary deletes half of the recipients of a domain or table, more than a hundredth (and a hundred) of all, or a whole domain, the deleted are answered 450 until the operator approves or rejects the deletion. What went in the last 7 days without being asked about counts too, unless it came back. This shows what waits.`
}

func (c *policyPendingCmd) Run(ctx context.Context, out io.Writer) error {
	var p *policysync.Pending
	if err := c.call(ctx, "GET", "/v1/sync/pending", &p); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(out, p)
	}
	return printPending(out, p)
}

func printPending(out io.Writer, p *policysync.Pending) error {
	if p == nil {
		_, err := fmt.Fprintln(out, "No deletion is pending.")
		return err
	}
	fmt.Fprintf(out, "Version %d deletes %d of the %d recipients of version %d (%s).\n", p.Version, p.Recipients, p.Of, p.Since, p.State)
	for _, d := range p.Domains {
		fmt.Fprintf(out, "  domain %s\n", printable(d))
	}
	for _, a := range p.Some {
		fmt.Fprintf(out, "  %s\n", printable(a))
	}
	if n := p.Recipients - uint64(len(p.Some)); n > 0 {
		fmt.Fprintf(out, "  and %d more\n", n)
	}
	_, err := fmt.Fprintf(out, "understudy policy approve %d lets it take effect; understudy policy reject %d keeps the version before.\n", p.Version, p.Version)
	return err
}

type policyApproveCmd struct {
	Version uint64 `arg:"" help:"The version, as understudy policy pending shows it."`
	daemonFlag
}

func (c *policyApproveCmd) Run(ctx context.Context) error {
	return c.ask(ctx, "POST", fmt.Sprintf("/v1/sync/approve/%d", c.Version))
}

type policyRejectCmd struct {
	Version uint64 `arg:"" help:"The version, as understudy policy pending shows it."`
	daemonFlag
}

func (policyRejectCmd) Help() string {
	return `The version before the deletion stays in force until the primary publishes one that deletes less, or the deletion is approved after all.`
}

func (c *policyRejectCmd) Run(ctx context.Context) error {
	return c.ask(ctx, "POST", fmt.Sprintf("/v1/sync/reject/%d", c.Version))
}

type policyDiffCmd struct {
	From uint64 `arg:"" optional:"" help:"A version; without one, the version before."`
	To   uint64 `arg:"" optional:"" help:"A later version; without one, the version in force."`
	daemonFlag
}

func (policyDiffCmd) Help() string {
	return `Shows who was added and removed, and which settings, tables and entries of tables changed, between two versions that are held: the last two, and the one before a mass deletion that waits. Where the primary hashes recipients, only their numbers and domains can be shown.`
}

func (c *policyDiffCmd) Run(ctx context.Context, out io.Writer) error {
	if c.From != 0 && c.To == 0 {
		var s syncStatus
		if err := c.call(ctx, "GET", "/v1/sync/status", &s); err != nil {
			return err
		}
		c.To = s.Version
	}
	var d policysync.Change
	if err := c.call(ctx, "GET", fmt.Sprintf("/v1/sync/diff/%d/%d", c.From, c.To), &d); err != nil {
		return err
	}
	printDiff(out, &d)
	return nil
}

func printDiff(out io.Writer, d *policysync.Change) {
	fmt.Fprintf(out, "Version %d to %d: %d recipients added, %d removed\n", d.From, d.To, d.Added, d.Removed)
	if d.Hashed {
		fmt.Fprintln(out, "Recipients are hashed; only their domains can be shown.")
	}
	for _, part := range []struct {
		sign string
		some []string
		all  uint64
	}{{"-", d.RemovedSome, d.Removed}, {"+", d.AddedSome, d.Added}} {
		for _, a := range part.some {
			fmt.Fprintf(out, "%s %s\n", part.sign, printable(a))
		}
		if n := part.all - uint64(len(part.some)); n > 0 {
			fmt.Fprintf(out, "%s and %d more\n", part.sign, n)
		}
	}
	for _, t := range d.Tables {
		fmt.Fprintf(out, "table %s\n", printable(t))
	}
	for _, s := range d.Entries {
		fmt.Fprintf(out, "entry %s\n", printable(s))
	}
	for _, s := range d.Settings {
		fmt.Fprintf(out, "setting %s\n", printable(s))
	}
}
