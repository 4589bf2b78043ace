package postfix

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// bigScript makes a mail host's tables: mailboxes in domains, with aliases.
func bigScript(mailboxes, aliases, domains int) string {
	var b strings.Builder
	b.WriteString(mailScript)
	rows := func(table string, n int, row func(i int) string) {
		for i := 0; i < n; i += 1000 {
			b.WriteString("INSERT INTO " + table + " VALUES ")
			for k := i; k < min(n, i+1000); k++ {
				if k > i {
					b.WriteByte(',')
				}
				b.WriteString(row(k))
			}
			b.WriteString(";\n")
		}
	}
	b.WriteString("CREATE INDEX alias_address ON alias (address); CREATE INDEX mailbox_username ON mailbox (username);\n")
	rows("domain", domains, func(i int) string { return fmt.Sprintf("('d%d.example', 1)", i) })
	rows("mailbox", mailboxes, func(i int) string {
		d := i % domains
		return fmt.Sprintf("('user%d@d%d.example','user%d','d%d.example','d%d.example/user%d/',%d,1)", i, d, i, d, d, i, i%7)
	})
	rows("alias", aliases, func(i int) string {
		d := i % domains
		return fmt.Sprintf("('alias%d@d%d.example','user%d@d%d.example','d%d.example',1,1)", i, d, i, d, d)
	})
	return b.String()
}

// computed is a query that can't be rewritten: each key has to be asked for.
const computed = "SELECT CAT('%d', '/', '%u', '/') FROM mailbox WHERE username = '%s' AND active = 1 UNION SELECT goto FROM alias WHERE address = '%s' AND active = 1"

type server struct {
	typ, connection string
	cat             func(string) string
	do              func(t testing.TB, sql string)
}

// servers are the three databases with the same tables.
func servers(t testing.TB, script string) []server {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mail.db")
	sqlite := func(t testing.TB, sql string) {
		t.Helper()
		cmd := exec.Command("sqlite3", path)
		cmd.Stdin = strings.NewReader("BEGIN;" + sql + "COMMIT;")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sqlite3: %v (run test/install-peers)\n%s", err, out)
		}
	}
	sqlite(t, script)
	my, pg := listertest.MariaDB(t, script), listertest.PostgreSQL(t, script)
	concat := func(s string) string { return strings.ReplaceAll(s, "CAT(", "CONCAT(") }
	return []server{
		{"sqlite", "dbpath = " + path + "\n", pipes, sqlite},
		{"mysql", fmt.Sprintf("hosts = unix:%s\nuser = reader\npassword = %s\ndbname = mail\n", my.Socket, listertest.Password), concat, my.Exec},
		{"pgsql", fmt.Sprintf("hosts = %s\nuser = reader\npassword = %s\ndbname = mail\n", pg.Address(), listertest.Password), pipes, pg.Exec},
	}
}

// TestMemo changes rows between listings: each is right, and asks only for what
// the change concerns.
func TestMemo(t *testing.T) {
	for _, s := range servers(t, bigScript(300, 50, 10)) {
		t.Run(s.typ, func(t *testing.T) {
			cf := s.connection + "query = " + s.cat(computed) + "\n"
			memo := &Memo{}
			list := func() *Table {
				t.Helper()
				db := &Database{Type: s.typ, Table: s.typ + ":x", memo: memo}
				var err error
				if db.Settings, err = parseCF(cf); err != nil {
					t.Fatal(err)
				}
				if err = db.analyse(); err != nil {
					t.Fatal(err)
				}
				table, err := db.list(t.Context(), Databases{})
				if err != nil || !table.How.Exact || table.Partial != "" {
					t.Fatalf("%v, %+v", err, table)
				}
				return table
			}
			plain := cf
			cf += "result_format = <%s>\n"
			if got := list().Entries["user7@d7.example"]; got != "<d7.example/user7/>" {
				t.Errorf("with result_format: %q", got)
			}
			cf = plain
			first := list()
			if got := first.Entries["user7@d7.example"]; got != "d7.example/user7/" {
				t.Errorf("without result_format: %q", got)
			}
			if first.How.Asked < 350 {
				t.Errorf("the first listing asks for %d keys", first.How.Asked)
			}
			for _, step := range []struct {
				sql, key, want string
				most           int
			}{
				{"INSERT INTO mailbox VALUES ('new@d1.example','new','d1.example','x/',1,1);", "new@d1.example", "d1.example/new/", 20},
				{"UPDATE mailbox SET active = 0 WHERE username = 'user7@d7.example';", "user7@d7.example", "", 20},
				{"UPDATE alias SET goto = 'other@x' WHERE address = 'alias3@d3.example';", "alias3@d3.example", "other@x", 20},
				{"DELETE FROM alias WHERE address = 'alias4@d4.example';", "alias4@d4.example", "", 20},
				{"DELETE FROM mailbox WHERE username = 'new@d1.example';", "new@d1.example", "", 20},
			} {
				s.do(t, step.sql)
				awaitChange(t, memo, step.sql)
				table := list()
				if got := table.Entries[step.key]; got != step.want {
					t.Errorf("%s: %q, want %q", step.sql, got, step.want)
				}
				if table.How.Asked > step.most {
					t.Errorf("%s: %d keys asked for", step.sql, table.How.Asked)
				}
			}
			fullListing := &Memo{}
			memo, fullListing = fullListing, memo
			anew := list()
			memo = fullListing
			kept := list()
			if len(anew.Entries) != len(kept.Entries) {
				t.Errorf("%d entries, anew %d", len(kept.Entries), len(anew.Entries))
			}
			for k, v := range anew.Entries {
				if kept.Entries[k] != v {
					t.Errorf("%s: %q, anew %q", k, kept.Entries[k], v)
				}
			}
		})
	}
}

// awaitChange waits until a glance sees a change.
func awaitChange(t testing.TB, memo *Memo, what string) {
	t.Helper()
	tick, patience := time.NewTicker(20*time.Millisecond), time.NewTimer(time.Minute)
	defer tick.Stop()
	defer patience.Stop()
	for !memo.Changed(t.Context(), Databases{}) {
		select {
		case <-tick.C:
		case <-patience.C:
			t.Fatalf("%s: no change is seen", what)
		}
	}
}

// BenchmarkListing lists 100,000 mailboxes and 10,000 aliases in 500 domains:
// anew, after a change of one row, and after none.
func BenchmarkListing(b *testing.B) {
	for _, s := range servers(b, bigScript(100_000, 10_000, 500)) {
		for name, query := range map[string]string{
			"rewritten": "SELECT maildir FROM mailbox WHERE username = '%s' AND active = 1",
			"asked":     computed,
		} {
			b.Run(s.typ+"/"+name, func(b *testing.B) {
				for range b.N {
					benchmarkListing(b, s, s.connection+"query = "+s.cat(query)+"\n")
				}
			})
		}
	}
}

func benchmarkListing(b *testing.B, s server, cf string) {
	memo := &Memo{}
	list := func() (*Table, time.Duration) {
		db := &Database{Type: s.typ, Table: s.typ + ":x", memo: memo}
		db.Settings, _ = parseCF(cf)
		start := time.Now()
		if err := db.analyse(); err != nil {
			b.Fatal(err)
		}
		table, err := db.list(b.Context(), Databases{})
		if err != nil || !table.How.Exact || table.Partial != "" {
			b.Fatalf("%v, %+v %s", err, table.How, table.Partial)
		}
		return table, time.Since(start)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(15)) // about what the daemon sets
	var before, after runtime.MemStats
	debug.FreeOSMemory()
	runtime.ReadMemStats(&before)
	peakMemory(b)
	idle, cpu := peakMemory(b), cpuTime(b)
	_, first := list()
	firstPeak, firstCPU := peakMemory(b), cpuTime(b)-cpu
	debug.FreeOSMemory()
	runtime.ReadMemStats(&after)
	s.do(b, fmt.Sprintf("INSERT INTO mailbox VALUES ('new%d@d1.example','new','d1.example','x/',1,1);", rand.Uint64()))
	awaitChange(b, memo, "one row")
	peakMemory(b)
	cpu = cpuTime(b)
	table, changed := list()
	changedPeak, changedCPU := peakMemory(b), cpuTime(b)-cpu
	awaitCalm(b, memo)
	list()
	start := time.Now()
	memo.Changed(b.Context(), Databases{})
	b.ReportMetric(first.Seconds(), "first-s")
	b.ReportMetric(firstCPU.Seconds(), "first-cpu-s")
	b.ReportMetric(float64(firstPeak-idle), "first-peak-MiB")
	b.ReportMetric(changed.Seconds(), "changed-s")
	b.ReportMetric(changedCPU.Seconds(), "changed-cpu-s")
	b.ReportMetric(float64(changedPeak-idle), "changed-peak-MiB")
	b.ReportMetric(time.Since(start).Seconds()*1000, "glance-ms")
	b.ReportMetric(float64(table.How.Asked), "asked")
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/(1<<20), "kept-MiB")
	runtime.KeepAlive(memo)
}

// peakMemory is the most that the process had in memory since it was last
// called, in MiB.
func peakMemory(b *testing.B) int {
	text, err := os.ReadFile("/proc/self/status")
	if err == nil {
		err = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	var kilobytes int
	if _, scan := fmt.Sscan(rest, &kilobytes); err != nil || scan != nil {
		b.Fatal(err, scan)
	}
	return kilobytes >> 10
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// awaitCalm waits until the last change isn't fresh any more.
func awaitCalm(b *testing.B, memo *Memo) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 100 {
		<-tick.C
		if r := memo.of("sqlite:x"); r == nil || !strings.HasPrefix(r.stamps["mailbox"], fresh) {
			return
		}
	}
}
