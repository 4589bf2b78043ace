package repeat

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// written is what was logged since it was last asked.
type written struct {
	mu  sync.Mutex // guards out
	out bytes.Buffer
}

func (w *written) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(b)
}

func (w *written) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.out.Reset()
	return w.out.String()
}

func (l *Log) remembered() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.lines)
}

// TestLog: of a line that comes again and again, the first and one each minute are written,
// and the counts say of all others; another line isn't held up by it.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out written
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		began := time.Now()
		expect := func(want ...string) {
			t.Helper()
			if got := strings.TrimSpace(out.take()); got != strings.Join(want, "\n") {
				t.Errorf("after %v:\n%s\nwant\n%s", time.Since(began), got, strings.Join(want, "\n"))
			}
		}
		var l Log
		for i := range 90 { // one a second; the half keeps them off the minute's end
			l.Error(log, "write", "not stored", "err", fmt.Errorf("error %d", i))
			if i == 0 {
				expect(`level=ERROR msg="not stored" err="error 0"`)
			}
			wait := time.Second
			if i == 0 {
				wait += time.Second / 2
			}
			time.Sleep(wait)
			synctest.Wait()
		}
		expect(`level=ERROR msg="not stored" err="error 59" times=59`)
		l.Error(log, "create", "not stored", "err", errors.New("another"))
		l.Warn(log, "write", "not removed")
		expect(`level=ERROR msg="not stored" err=another`, `level=WARN msg="not removed"`)
		time.Sleep(time.Minute)
		synctest.Wait()
		expect(`level=ERROR msg="not stored" err="error 89" times=30`)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		expect("")
		l.Error(log, "write", "not stored", "err", errors.New("again"))
		expect(`level=ERROR msg="not stored" err=again`)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
	})
}

// TestOver: after it is mended, what was counted is written, and the next trouble at once.
func TestOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out written
		log := slog.New(slog.NewTextHandler(&out, nil))
		var l Log
		l.Error(log, "", "not stored", "n", 1)
		l.Error(log, "", "not stored", "n", 2)
		l.Over()
		if got := out.take(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "n=2 times=1") {
			t.Errorf("over: %s", got)
		}
		time.Sleep(Every / 2)
		l.Error(log, "", "not stored", "n", 3)
		if got := out.take(); !strings.Contains(got, "n=3\n") {
			t.Errorf("the next: %q", got)
		}
		l.Error(log, "", "not stored", "n", 4)
		time.Sleep(Every - time.Second) // the first one's minute is over
		synctest.Wait()
		if got := out.take(); got != "" || l.remembered() != 1 {
			t.Errorf("too early: %s", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := out.take(); !strings.Contains(got, "n=4 times=1") {
			t.Errorf("at the end: %s", got)
		}
		time.Sleep(Every)
	})
}

// TestMany: however many lines there are to be told apart, each is written, and few are
// remembered. Goroutines may use a Log together.
func TestMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out written
		log := slog.New(slog.NewTextHandler(&out, nil))
		var l Log
		var wg sync.WaitGroup
		for i := range 3 * most {
			wg.Go(func() { l.Warn(log, fmt.Sprint(i), "often") })
		}
		wg.Wait()
		if n := strings.Count(out.take(), "often"); n != 3*most || l.remembered() != most {
			t.Errorf("%d lines of %d, %d remembered", n, 3*most, l.remembered())
		}
		time.Sleep(2 * Every)
		synctest.Wait()
		if l.remembered() != 0 {
			t.Errorf("%d remembered after they were over", l.remembered())
		}
	})
}
