package page

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/fleet"
	"github.com/understudy-mx/understudy/internal/meter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/internal/service"
)

// maxText bounds what is shown of others' text, in octets.
const maxText = 300

// show makes foreign text safe to be read: no control characters, none that turn
// the direction of what stands beside it, and not too much.
func show(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return service.Printable(s)
}

// round keeps three decimals.
func round(f float64) float64 { return math.Round(f*1000) / 1000 }

// now is one picture. It holds no envelope address.
type now struct {
	Hostname string    `json:"hostname"`
	Version  string    `json:"version"`
	At       time.Time `json:"at"`
	Error    string    `json:"error,omitempty"` // why the queue says nothing
	operator.View
	Policy   policyNow   `json:"policy"`
	Verdicts []verdict   `json:"verdicts"`
	Outages  []outageNow `json:"outages"` // the last ones, the latest first
	Parity   *parityNow  `json:"parity"`  // null before the first live decision
	Fleet    *fleetNow   `json:"fleet"`   // null where no database is shared
}

// fill takes over what was seen, made safe.
func (n *now) fill(v operator.View) {
	n.View = v
	n.Routes = slices.Clone(v.Routes)
	for i := range n.Routes {
		r := &n.Routes[i]
		r.LastError, r.WithoutXClient = show(r.LastError), show(r.WithoutXClient)
	}
}

// policyNow is the policy in force.
type policyNow struct {
	Version    float64 `json:"version"` // 0: none
	Loaded     float64 `json:"loaded"`  // Unix times
	Signed     float64 `json:"signed"`  // 0: from a file
	Recipients float64 `json:"recipients"`
	State      string  `json:"state"`  // fresh, stale, none; "" from a file
	Staged     string  `json:"staged"` // a mass deletion: pending, rejected
}

// parityNow is how well the snapshot has agreed with the primary in live sessions.
type parityNow struct {
	Rate        float64   `json:"rate"` // of all decisions
	Decisions   uint64    `json:"decisions"`
	Unexplained uint64    `json:"unexplained"`
	Since       time.Time `json:"since"`
}

func parityOf(r meter.Report) *parityNow {
	if r.Rate == nil {
		return nil
	}
	return &parityNow{Rate: *r.Rate, Decisions: r.Same + r.Different, Unexplained: r.Unexplained, Since: r.Since}
}

// fleetNow is who shares the database.
type fleetNow struct {
	Self    string      `json:"self"`
	At      time.Time   `json:"at"`    // last heard of
	Error   string      `json:"error"` // why nothing is heard of now
	Adopts  string      `json:"adopts"`
	Members []memberNow `json:"members"`
	More    int         `json:"more"` // members that aren't shown
}

// memberNow is one of those secondaries.
type memberNow struct {
	Name     string  `json:"name"`
	Alive    bool    `json:"alive"`
	Seen     float64 `json:"seen_seconds"` // ago; -1 for never
	Version  uint64  `json:"version"`      // of its policy, 0 from a file
	Digest   string  `json:"digest"`
	Differs  bool    `json:"policy_differs"`
	Sessions int     `json:"sessions"`
	Relaying int     `json:"relaying"`
	Messages int64   `json:"messages"`
	Share    float64 `json:"share"`
	Out      float64 `json:"out_per_second"`
	Problem  string  `json:"problem"`
}

// maxMembers bounds the secondaries that are shown.
const maxMembers = 100

func fleetOf(v fleet.View) *fleetNow {
	n := &fleetNow{Self: show(v.Self), At: v.At, Error: show(v.Error), Adopts: show(v.Adopts), Members: []memberNow{}}
	for _, m := range v.Members {
		if len(n.Members) == maxMembers {
			n.More++
			continue
		}
		if m.Holder != "" {
			m.Problem = "its spool is held by " + m.Holder
		}
		n.Members = append(n.Members, memberNow{Name: show(m.Name), Alive: m.Alive, Seen: round(m.Seen), Version: m.Version,
			Digest: show(m.Digest[:min(len(m.Digest), 12)]), Differs: m.Differs, Sessions: m.Sessions, Relaying: m.Relaying,
			Messages: m.Messages, Share: round(m.Share), Out: round(m.Out), Problem: show(m.Problem)})
	}
	return n
}

// outageNow is an outage in numbers.
type outageNow struct {
	ID       int       `json:"id"`
	Route    string    `json:"route"`
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended,omitzero"`
	Drained  time.Time `json:"drained,omitzero"`
	Accepted uint64    `json:"accepted"`
	Refused  uint64    `json:"refused"`
	Relayed  uint64    `json:"relayed"`
	Held     uint64    `json:"held"`
}

const maxOutages = 5

func lastOutages(all []outage.Outage) []outageNow {
	list := []outageNow{}
	for _, o := range slices.Backward(all) {
		if len(list) == maxOutages {
			break
		}
		list = append(list, outageNow{ID: o.ID, Route: o.Route, Began: o.Began, Ended: o.Ended, Drained: o.Drained,
			Accepted: o.Accepted, Refused: o.Refusals(), Relayed: o.Relayed, Held: o.Held})
	}
	return list
}

// verdict counts how often a kind of rule decided.
type verdict struct {
	Stage  string  `json:"stage"`
	Action string  `json:"action"`
	Rule   string  `json:"rule"`
	Recent float64 `json:"recent"` // in the last recentFor
	Total  float64 `json:"total"`  // since the start
}

// How often the metrics are read, and how far back verdicts are recent.
const (
	countEvery = 5 * time.Second
	recentFor  = 10 * time.Minute
)

// counts remembers the verdicts of the last ten minutes.
type counts struct {
	asked time.Time
	past  []moment
	now   policyNow
	list  []verdict
}

type moment struct {
	at     time.Time
	totals map[verdict]float64 // by stage, action and rule
}

// read returns the metrics as they were at most countEvery ago.
func (c *counts) read(g prometheus.Gatherer, at time.Time) (policyNow, []verdict) {
	if !c.asked.IsZero() && at.Sub(c.asked) < countEvery {
		return c.now, c.list
	}
	c.asked = at
	families, err := g.Gather()
	if err != nil {
		return c.now, c.list // a collector failed; its page says which
	}
	c.now = policyNow{}
	gauges := map[string]*float64{
		"understudy_policy_version": &c.now.Version, "understudy_policy_loaded_timestamp_seconds": &c.now.Loaded,
		"understudy_policy_recipients": &c.now.Recipients, "understudy_sync_signed_timestamp_seconds": &c.now.Signed,
	}
	oneOf := map[string]*string{"understudy_sync_state": &c.now.State, "understudy_sync_staged_deletion": &c.now.Staged}
	totals := map[verdict]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			label := map[string]string{}
			for _, l := range m.GetLabel() {
				label[l.GetName()] = l.GetValue()
			}
			if into := gauges[f.GetName()]; into != nil {
				*into = m.GetGauge().GetValue()
			}
			if into := oneOf[f.GetName()]; into != nil && m.GetGauge().GetValue() == 1 {
				*into = cmp.Or(label["state"], label["decision"])
			}
			if f.GetName() == "understudy_policy_verdicts_total" {
				totals[verdict{Stage: label["stage"], Action: label["action"], Rule: label["rule"]}] = m.GetCounter().GetValue()
			}
		}
	}
	c.list = c.since(at, totals)
	return c.now, c.list
}

// since lists the verdicts, those that decided most of late first.
func (c *counts) since(at time.Time, totals map[verdict]float64) []verdict {
	c.past = append(c.past, moment{at, totals})
	for len(c.past) > 1 && at.Sub(c.past[1].at) >= recentFor {
		c.past = c.past[1:]
	}
	list := []verdict{}
	for v, total := range totals {
		if v.Rule == "none" && v.Action == "permit" {
			continue // the list went by, and nothing was decided
		}
		before := c.past[0].totals[v]
		v.Total, v.Recent = total, total-before
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b verdict) int {
		return cmp.Or(cmp.Compare(b.Recent, a.Recent), cmp.Compare(b.Total, a.Total),
			strings.Compare(a.Stage+a.Action+a.Rule, b.Stage+b.Action+b.Rule))
	})
	return list[:min(len(list), maxVerdicts)]
}

const maxVerdicts = 50
