package main

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// writes notes each write.
type writes []string

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, string(p))
	return len(p), nil
}

func TestGatherer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out writes
		g := &gatherer{w: &out}
		say := func(lines ...string) {
			for _, l := range lines {
				if n, err := g.Write([]byte(l)); n != len(l) || err != nil {
					t.Errorf("%d, %v", n, err)
				}
			}
		}
		want := func(when string, all ...string) {
			t.Helper()
			g.mu.Lock()
			defer g.mu.Unlock()
			if !slices.Equal(out, all) {
				t.Errorf("%s: got %q, want %q", when, out, all)
			}
		}
		say("a\n", "b\n")
		want("at once")
		time.Sleep(gatherFor)
		synctest.Wait()
		want("a moment later", "a\nb\n")
		long := strings.Repeat("x", gatherUpTo)
		say("c\n", long)
		want("when there is much", "a\nb\n", "c\n"+long)
		time.Sleep(gatherFor)
		synctest.Wait()
		say("d\n")
		g.flush()
		want("at the end", "a\nb\n", "c\n"+long, "d\n")
		time.Sleep(gatherFor)
	})
}
