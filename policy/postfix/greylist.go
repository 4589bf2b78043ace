package postfix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/internal/program"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// What postgrey knows is in two databases of Berkeley DB: triplets, with the times
// of the first and the last attempt, and clients, with how often they passed and
// when last. While postgrey runs, the newest of it is in its log alone, and another
// program in its environment could make it hang. So the files are copied, and the copy
// is recovered from the log as postgrey's would be after a crash, and read by the
// module that postgrey itself uses.

const (
	greyTriplets, greyClients = "postgrey.db", "postgrey_clients.db"
	// maxKnown bounds the triplets, and the clients, that a policy carries.
	maxKnown    = 500_000
	maxGreyCopy = 4 << 30 // octets
	greyTimeout = 5 * time.Minute
	// greyRest is how much longer than a reading took the database is left alone.
	greyRest = 20
	day      = 24 * 60 * 60
)

// whyGreyUnread is why a postgrey isn't followed that could be.
const whyGreyUnread = "who passed there can't be read"

// ReadRemedy gives the publisher's unit the right to read what is its owner's alone.
const ReadRemedy = "let the publisher read it: install -D -m 644 /usr/share/understudy/postgrey.conf /etc/systemd/system/understudy-publish.service.d/postgrey.conf, " +
	"systemctl daemon-reload, systemctl restart understudy-publish"

// unreadRemedy is what the operator can do about a database of who has passed a test. Behind
// a command, no right helps.
func (i *importer) unreadRemedy(name string) string {
	remedy := "name a command that prints it: postfix_list = [\"" + name + "=COMMAND\"]"
	if i.src.Host != nil && len(i.src.Host.Prefix) > 0 {
		return remedy
	}
	return ReadRemedy + "; or " + remedy
}

// greyScript prints both databases as db_dump(1) does.
const greyScript = `use strict; use BerkeleyDB;
my ($dir) = @ARGV;
my $env = BerkeleyDB::Env->new(-Home => $dir, -Flags => DB_CREATE|DB_PRIVATE|DB_RECOVER_FATAL|DB_INIT_TXN|DB_INIT_MPOOL|DB_INIT_LOG)
	or die "the copy can't be recovered: $BerkeleyDB::Error\n";
for my $name ("` + greyTriplets + `", "` + greyClients + `") {
	print "VERSION=3\nformat=bytevalue\ntype=btree\nHEADER=END\n";
	if (-e "$dir/$name") {
		my $db = BerkeleyDB::Btree->new(-Filename => $name, -Env => $env, -Flags => DB_RDONLY) or die "$name can't be opened: $BerkeleyDB::Error\n";
		my $cursor = $db->db_cursor() or die "$name can't be read\n";
		my ($key, $value, $status) = ("", "", 0);
		while (($status = $cursor->c_get($key, $value, DB_NEXT)) == 0) {
			print " ", unpack("H*", $key), "\n ", unpack("H*", $value), "\n";
		}
		die "$name can't be read: $status\n" unless $status == DB_NOTFOUND;
	}
	print "DATA=END\n";
}`

// greyKnown is what a postgrey knows.
type greyKnown struct {
	read              time.Time // when
	took              time.Duration
	rules             string // by which it was chosen
	triplets, clients *table.Table
	rspamd            *policy.RspamdGreylist // whose envelopes the triplets are; nil: it puts nobody off
	left              int                    // entries that were too many
	failing           error                  // why the last attempt failed
}

// greylist makes a postgrey part of the policy, with what it knows, and returns
// the name that check_greylist gives. note is what a report should say of it.
func (i *importer) greylist(g *policy.Greylist) (name, note string, err error) {
	for name, known := range i.spec.Filters.Greylists {
		if known.Database == g.Database {
			return name, "", nil
		}
	}
	listed := i.src.Commands["postgrey:"+g.Database]
	dir, err := i.filterHost().Path(g.Database)
	if err != nil && listed == nil {
		return "", "", err
	}
	known, err := i.src.Memo.greylist(g.Database, greyRules(g), 10*time.Second, func() (*greyKnown, error) {
		start, now := time.Now(), time.Now
		if i.src.Now != nil {
			now = i.src.Now
		}
		k, err := readPostgrey(i.ctx, dir, listed, g, now().Unix())
		if err == nil {
			k.read, k.took, k.rules = start, time.Since(start), greyRules(g)
		}
		return k, err
	})
	if err != nil {
		return "", "", err
	}
	switch {
	case known.failing != nil:
		note = fmt.Sprintf("its database can't be read, what is known is of %s: %v", known.read.UTC().Format(time.DateTime), known.failing)
	case known.left > 0:
		note = fmt.Sprintf("the %d oldest that it knows are left out", known.left)
	}
	spec := *g
	name = fmt.Sprintf("postgrey-%d", len(i.spec.Filters.Greylists)+1)
	spec.KnownTriplets, spec.KnownClients = name+"-triplets", name+"-clients"
	i.spec.Tables[spec.KnownTriplets], i.spec.Tables[spec.KnownClients] = known.triplets, known.clients
	if i.spec.Filters.Greylists == nil {
		i.spec.Filters.Greylists = map[string]policy.Greylist{}
	}
	i.spec.Filters.Greylists[name] = spec
	i.polled[g.Database] = true
	return name, note, nil
}

// greyRules are what decides which entries are chosen.
func greyRules(g *policy.Greylist) string { return fmt.Sprint(g.Delay, g.MaxAge, g.AutoClients) }

// greylist returns what was read of a database last, unless that is long ago;
// then it reads, and falls back to the last if that fails.
func (m *Memo) greylist(dir, rules string, rest time.Duration, read func() (*greyKnown, error)) (*greyKnown, error) {
	if m == nil {
		return read()
	}
	m.mu.Lock()
	last := m.greylists[dir]
	m.mu.Unlock()
	if last != nil && last.rules != rules {
		last = nil
	}
	if last != nil && time.Since(last.read) < max(rest, greyRest*last.took) {
		return last, nil
	}
	k, err := read()
	if err != nil {
		if last == nil {
			return nil, err
		}
		older := *last
		older.failing = err
		k = &older
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.greylists == nil {
		m.greylists = map[string]*greyKnown{}
	}
	m.greylists[dir] = k
	return k, nil
}

// readPostgrey reads a database at the time now. command, if any, prints it: the
// triplets, then the clients, as db_dump(1) does.
func readPostgrey(ctx context.Context, dir string, command []string, g *policy.Greylist, now int64) (*greyKnown, error) {
	ctx, cancel := context.WithTimeout(ctx, greyTimeout)
	defer cancel()
	if command == nil {
		copied, err := copyDatabase(dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g.Database, err)
		}
		defer os.RemoveAll(copied)
		command = []string{"perl", "-e", greyScript, copied}
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	stderr := &bounded{max: maxStderr}
	cmd.Stderr = stderr
	var k *greyKnown
	readErr, err := program.Read(ctx, cmd, func(r io.Reader) (err error) {
		k, err = chooseKnown(r, g, now)
		return err
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", g.Database, ctx.Err())
	case err != nil && readErr == nil || err != nil && stderr.Len() > 0:
		return nil, fmt.Errorf("%s: %w: %s", g.Database, err, strings.TrimSpace(stderr.String()))
	case readErr != nil:
		return nil, fmt.Errorf("%s: %w", g.Database, readErr)
	}
	return k, nil
}

// seen is an entry that may be chosen.
type seen struct {
	key   string
	count int64 // of a client
	last  int64
}

// chooseKnown takes from a dump who has passed and isn't too old.
func chooseKnown(r io.Reader, g *policy.Greylist, now int64) (*greyKnown, error) {
	var lists [2][]seen
	k := &greyKnown{}
	err := lister.ReadDump(r, func(database int, key, value []byte) error {
		if database > 1 {
			return errors.New("more than two databases")
		}
		a, b, ok := greyValue(value)
		if !ok || len(key) == 0 || len(key) > 1200 || now-b > int64(g.MaxAge) {
			return nil
		}
		s := seen{string(key), a, b}
		switch {
		case database == 0 && b-a < int64(g.Delay):
			return nil
		case database == 0:
			s.count = 0
		case g.AutoClients > 0 && a >= int64(g.AutoClients): // neither its count nor the hour matters any more
			s.count, s.last = int64(g.AutoClients), (b/day+1)*day
		}
		lists[database] = append(lists[database], s)
		if len(lists[database]) >= 2*maxKnown {
			k.left += newest(&lists[database])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for n, to := range []**table.Table{&k.triplets, &k.clients} {
		k.left += newest(&lists[n])
		entries := make(map[string]string, len(lists[n]))
		for _, s := range lists[n] {
			if n == 0 {
				entries[table.Fold(s.key)] = strconv.FormatInt(s.last/day, 10)
			} else {
				entries[table.Fold(s.key)] = policy.GreyClient{Count: s.count, Last: s.last}.String()
			}
		}
		if *to, err = table.NewHash(entries); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// newest cuts a list to those seen last, and returns how many are left out.
func newest(list *[]seen) (left int) {
	if len(*list) <= maxKnown {
		return 0
	}
	slices.SortFunc(*list, func(a, b seen) int { return cmp.Or(cmp.Compare(b.last, a.last), cmp.Compare(a.key, b.key)) })
	left = len(*list) - maxKnown
	*list = (*list)[:maxKnown]
	return left
}

// greyValue reads "number,time" and, in old databases, another field.
func greyValue(b []byte) (first, last int64, ok bool) {
	f := strings.SplitN(string(b[:min(len(b), 64)]), ",", 3)
	if len(f) < 2 {
		return 0, 0, false
	}
	first, err1 := strconv.ParseInt(f[0], 10, 63)
	last, err2 := strconv.ParseInt(f[1], 10, 63)
	return first, last, err1 == nil && err2 == nil && first >= 0 && last >= 0
}

// copyDatabase copies postgrey's databases and then their log. A log file that
// went meanwhile may be missed by the copy, so it is made again.
func copyDatabase(dir string) (copied string, err error) {
	const attempts = 3
	for range attempts {
		before := firstLog(dir)
		if copied, err = copyOnce(dir); err != nil {
			return "", err
		}
		if firstLog(dir) == before {
			return copied, nil
		}
		os.RemoveAll(copied)
	}
	return "", errors.New("its log is replaced again and again")
}

func firstLog(dir string) string {
	logs, _ := filepath.Glob(filepath.Join(dir, "log.*"))
	if len(logs) == 0 {
		return ""
	}
	return slices.Min(logs)
}

func copyOnce(dir string) (copied string, err error) {
	copied, err = os.MkdirTemp("", "understudy-postgrey")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(copied)
		}
	}()
	names := []string{filepath.Join(dir, greyTriplets), filepath.Join(dir, greyClients)}
	for i := 0; i < len(names); i++ {
		if err = copyFile(filepath.Join(copied, filepath.Base(names[i])), names[i]); err != nil && !(i == 1 && errors.Is(err, os.ErrNotExist)) {
			return "", err
		}
		if i == 1 {
			logs, _ := filepath.Glob(filepath.Join(dir, "log.*"))
			names = append(names, logs...)
		}
	}
	return copied, nil
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if pathErr := (*os.PathError)(nil); errors.As(err, &pathErr) {
		return fmt.Errorf("%s: %w", filepath.Base(from), pathErr.Err)
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(r, maxGreyCopy))
	if err == nil && n == maxGreyCopy {
		err = fmt.Errorf("%s is too large", filepath.Base(from))
	}
	return errors.Join(err, w.Close())
}
