// Package parity plays the same sessions against a real Postfix and against
// our server with the policy that was imported from it, and expects the same
// replies. It needs root: Postfix's master does, and so does the DNS that it
// is given.
//
// SESSIONS sets how many sessions each profile gets, SEED which ones, MUTANTS
// that every so many-th mutant of each policy is played (1: all; 0: none).
// PROFILES is a directory of other configurations to play: a subdirectory each,
// @DIR@ in its files being where they end up; databases are asked themselves.
package parity

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/resolver"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/parity"
	"github.com/understudy-mx/understudy/smtpd"
)

const (
	parallel        = 6
	defaultSessions = 2000
	defaultMutants  = 8
	// recorded bounds the sessions that mutants are played against.
	recorded = 6000
)

func number(t *testing.T, name string, def int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s=%q is no number", name, s)
	}
	return n
}

// TestProfiles compares every profile of the importer.
func TestProfiles(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(profiles(), "*"))
	if err != nil || len(dirs) < 10 && os.Getenv("PROFILES") == "" {
		t.Fatalf("only %d profiles: %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) { profile(t, filepath.Base(dir)) })
	}
}

// profiles is the directory that has them.
func profiles() string {
	return cmp.Or(os.Getenv("PROFILES"), "../../policy/postfix/testdata/profiles")
}

// run is one profile's: its sessions and what the primary said.
type run struct {
	primary    *twin
	nameserver string
	material   *parity.Material
	seed       uint64

	mu    sync.Mutex // guards what follows
	trace []played
	whys  map[string]int // deviations seen
}

func profile(t *testing.T, name string) {
	d := startWorld(t)
	r := &run{primary: newPrimary(t, name, d.Addr()), nameserver: d.Addr(), seed: uint64(number(t, "SEED", 1)), whys: map[string]int{}}
	p := r.primary
	r.material = world(t, d, p.spec)
	if p.postconf(filepath.Join(p.dir, "run"), "-xh", "inet_protocols") == "ipv4\n" {
		r.material.Clients = slices.DeleteFunc(r.material.Clients, func(c parity.Client) bool { return c.Addr.Is6() })
	}
	local, stop := serve(t, p.spec, d.Addr(), false)
	defer stop()
	began := time.Now()
	res, err := parity.Run(t.Context(), parity.Options{
		Primary: p.dial, Local: local, Material: r.material, Parallel: parallel,
		Sessions: number(t, "SESSIONS", defaultSessions), Seed: r.seed, Observe: r.observe,
	})
	var b strings.Builder
	res.Print(&b)
	t.Logf("by its report this profile's primary was changed in %d ways:\n  %s\nforms of addresses that are read otherwise: %v\n%sin %.0f s",
		len(p.settled), strings.Join(p.settled, "\n  "), r.whys, &b, time.Since(began).Seconds())
	if err != nil {
		t.Fatal(err)
	}
	if res.Differences > 0 {
		t.Errorf("%d differences", res.Differences)
	}
	if step := number(t, "MUTANTS", defaultMutants); step > 0 {
		r.mutations(t, step, same(t, name))
		r.matter(t, name)
	}
}

// observe keeps what the primary said, and explains differences.
func (r *run) observe(n int, _ parity.Session, d *parity.Difference, primary parity.Transcript) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d == nil {
		if len(r.trace) < recorded {
			r.trace = append(r.trace, played{n, primary})
		}
		return false
	}
	why, ok := explained(d)
	if ok {
		r.whys[why]++
	}
	return ok
}

// same reads the mutants that no session can tell from the original: a line
// is the mutant's name, " # " and the reason. In the file that all profiles
// share a line is the end of a name.
func same(t *testing.T, profile string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for prefix, name := range map[string]string{" ": "testdata/same.txt", "": filepath.Join("testdata", profile, "same.txt")} {
		b, err := os.ReadFile(name)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			if what, reason, ok := strings.Cut(line, " # "); ok {
				out[prefix+strings.TrimSpace(what)] = reason
			} else if line != "" {
				t.Fatalf("%s: %q has no reason", name, line)
			}
		}
	}
	return out
}

func (p *twin) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", p.addr)
}

// compiled is the snapshot of a policy whose primary has testOnly.
func compiled(t *testing.T, spec *policy.Spec) *policy.Snapshot {
	t.Helper()
	spec.Limits.SoftErrors = 0
	client := &spec.Limits.Client
	client.Connections, client.ConnectionRate, client.MessageRate, client.RecipientRate = 0, 0, 0, 0
	snap, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return snap
}

// serve runs our server with a policy, in memory.
func serve(t *testing.T, spec *policy.Spec, nameserver string, proxy bool, options ...func(*smtpd.Server)) (d parity.Dialer, stop func()) {
	t.Helper()
	snap := compiled(t, spec)
	srv := &smtpd.Server{
		Hostname: "secondary.example.org", Policy: func() *policy.Snapshot { return snap },
		Resolver: resolver.New(resolver.Options{Servers: []string{nameserver}, Timeout: 30 * time.Second}), Keep: smtpd.Nowhere{},
		XClientFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, MaxUnknownRecipients: 1 << 20,
	}
	for _, set := range options {
		set(srv)
	}
	pipe := parity.NewPipe()
	if proxy {
		srv.ProxyFrom = srv.XClientFrom
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, pipe) }()
	return pipe.Dial, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
}
