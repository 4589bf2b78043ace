package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	netmail "net/mail"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// arrival is a message as it came to the primary.
type arrival struct {
	at      time.Time // to the second, by the primary
	by      *machine
	queueID string // the primary's
	id      string // the secondary's
}

var (
	fromMachine = regexp.MustCompile(`\[10\.99\.0\.([123])\]`)
	withID      = regexp.MustCompile(`\sid ([^\s;]+)`)
)

func (s *stage) arrival(content []byte) (a arrival, err error) {
	m, err := netmail.ReadMessage(bytes.NewReader(content))
	if err != nil {
		return a, err
	}
	trace := m.Header["Received"]
	if len(trace) < 2 {
		return a, errors.New("fewer than two Received fields")
	}
	from, queueID, id := fromMachine.FindStringSubmatch(trace[0]), withID.FindStringSubmatch(trace[0]), withID.FindStringSubmatch(trace[1])
	if from == nil || queueID == nil || id == nil {
		return a, fmt.Errorf("no machine or ID in %q", trace)
	}
	a = arrival{by: s.machines[from[1][0]-'1'], queueID: queueID[1], id: id[1]}
	a.at, err = netmail.ParseDate(trace[0][strings.LastIndex(trace[0], ";")+1:])
	return a, err
}

// said is what the secondaries' logs say of a message.
type said struct {
	noted                 map[*machine]int // a relaying, durably
	unanswered            map[*machine]int // a session ended without the primary's reply to it
	moved, doubt, unnoted bool
}

// logs reads what all secondaries said of these messages.
func (s *stage) logs(twice map[int][]arrival) (map[string]*said, error) {
	all := map[string]*said{}
	for _, copies := range twice {
		for _, a := range copies {
			all[a.id] = &said{noted: map[*machine]int{}, unanswered: map[*machine]int{}}
		}
	}
	for _, m := range s.machines {
		f, err := os.Open(m.file("understudy.log"))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var l struct {
				Msg, ID    string
				Relayed    int
				Unanswered string
			}
			if json.Unmarshal(lines.Bytes(), &l) != nil {
				continue // one that a kill cut short
			}
			if about := all[l.Unanswered]; about != nil {
				about.unanswered[m]++
			}
			about := all[l.ID]
			switch {
			case about == nil:
			case l.Msg == "relay attempt" && l.Relayed > 0:
				about.noted[m]++
			case strings.HasPrefix(l.Msg, "relayed a message that another secondary has taken over"):
				about.moved = true
			case strings.HasPrefix(l.Msg, "relayed a message that the primary may have had before"):
				about.doubt = true
			case l.Msg == "outcome not stored":
				about.unnoted = true
			}
		}
		if err := lines.Err(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// The windows of docs/FLEET.md and docs/DURABILITY.md in which a message may come twice.
const (
	secondaryKilled = "a secondary was killed before it had noted the primary's 250"
	primaryKilled   = "the primary was killed before its 250 had come"
	replyLost       = "the primary's 250 was lost on the way"
	leaseLost       = "a lease was lost in a session"
	inDoubt         = "the primary might have had it before"
	notStored       = "the outcome couldn't be stored"
	primarysOwn     = "the primary was killed, and delivered it twice itself"
	outsideOfAny    = "OUTSIDE OF ANY WINDOW"
)

// explain counts the messages that came twice by window.
func (s *stage) explain(twice map[int][]arrival) (map[string]int, error) {
	counts := map[string]int{outsideOfAny: 0}
	logs, err := s.logs(twice)
	if err != nil {
		return nil, err
	}
	for n, copies := range twice {
		slices.SortFunc(copies, func(a, b arrival) int { return a.at.Compare(b.at) })
		why := s.window(copies, logs[copies[0].id])
		counts[why]++
		text := fmt.Sprintf("twice: message %d, %s:", n, why)
		for _, a := range copies {
			text += fmt.Sprintf(" %s by %d as %s (%s noted %d times);", a.at.Local().Format(time.TimeOnly), a.by.n, a.queueID, a.id, logs[a.id].noted[a.by])
		}
		log.Print(text)
	}
	return counts, nil
}

// window is the one that explains every copy but the last.
func (s *stage) window(copies []arrival, said *said) string {
	last := copies[len(copies)-1]
	why := ""
	for i, a := range copies[:len(copies)-1] {
		next := copies[i+1]
		by := 0
		for _, c := range copies {
			if c.by == a.by {
				by++
			}
		}
		switch {
		case a.id != last.id:
			return outsideOfAny
		case a.queueID == next.queueID:
			why = primarysOwn
		case said.moved:
			why = leaseLost
		case said.doubt:
			why = inDoubt
		case said.unnoted:
			why = notStored
		case said.noted[a.by] >= by:
			return outsideOfAny
		case s.noted(a.by, a.at.Add(-time.Second), next.at.Add(time.Second), "killed", "dead", "understudy ended"):
			why = secondaryKilled
		case s.noted(nil, a.at.Add(-time.Second), earlier(next.at, a.at.Add(time.Minute)), "killed", "dead"):
			why = primaryKilled
		case said.unanswered[a.by] > 0, s.noted(a.by, a.at.Add(-10*time.Second), a.at.Add(time.Second), "deaf"):
			why = replyLost
		default:
			return outsideOfAny
		}
	}
	return why
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// noted says that there is a note of this between two times.
func (s *stage) noted(m *machine, from, to time.Time, what ...string) bool {
	return slices.ContainsFunc(s.notes, func(n note) bool {
		return n.machine == m && slices.Contains(what, n.what) && !n.at.Before(from) && !n.at.After(to)
	})
}
