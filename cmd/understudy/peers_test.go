package main

import (
	"bytes"
	"strings"
	"testing"

	policysync "github.com/understudy-mx/understudy/sync"
)

// TestPeersDiffer: who hasn't the newest policy of all secondaries is marked, whatever
// the order, and a new epoch is newer than any version of an old one.
func TestPeersDiffer(t *testing.T) {
	peer := func(name string, epoch, version uint64) policysync.Peer {
		return policysync.Peer{Name: name, Report: &policysync.Report{Epoch: epoch, Version: version}}
	}
	var out bytes.Buffer
	err := printPeers(&out, []policysync.Peer{peer("old", 1, 40), peer("new", 2, 7), {Name: "silent"}, peer("late", 2, 6), peer("alike", 2, 7)})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"old": "40!", "new": "7", "silent": "-", "late": "6!", "alike": "7"}
	for line := range strings.Lines(out.String()) {
		f := strings.Fields(strings.ReplaceAll(line, "not since the start", "x x"))
		if v, ok := want[f[0]]; ok && (len(f) < 5 || !strings.Contains(line, " "+v+" ")) {
			t.Errorf("%s, want %s: %s", f[0], v, line)
		}
		delete(want, f[0])
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v\n%s", want, out.String())
	}
}
