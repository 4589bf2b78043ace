package fleet

import (
	"slices"
	"strings"
	"time"
)

// The next hop's limits hold for all members together. Each takes a part, and says
// so in its beat: what it claims of a limit, and what it wants.
//
//	mx2  claims 18 of 20 sessions, wants 20
//	mx3  claims 1, wants 1
//	mx4  claims 1, wants 0
//
// The sum of what members use is never above a limit, though they decide by
// themselves. For a member
//
//   - lowers its part first, counts what is still open, and only then claims less;
//   - claims more first, and then reads what the others claim. It uses what it has
//     claimed only if all claims together are within the limit. Of two that claim
//     at the same time, the second to write reads what the first one wrote;
//   - goes back to its alone part when its beats fail, well before the others take
//     it for dead, and leaves that much to a silent one.
//
// A session that is open when its part goes ends with its message: that alone may
// outlast a part that was lost by silence.

// Limit is a bound on all members together.
type Limit struct {
	Key    string // its name among the members
	Most   int
	Used   int // of it here, at most, now
	Want   int
	Steady bool // what wants it doesn't wait: each keeps half of its equal part
}

// Part is a member's part of a limit, as it says it.
type Part struct {
	Claims int `json:"c"`
	Wants  int `json:"w,omitempty"`
}

// part is this member's.
type part struct {
	Limit
	target int // by what is known of the others
	may    int // to be used; never more than the database has as claimed
}

// Part is what this member may use of a limit now.
func (f *Fleet) Part(key string, most int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.parts[key]
	if p == nil { // before the first beat
		return 0
	}
	return min(p.may, most)
}

func (f *Fleet) limits() []Limit {
	if f.o.Limits == nil {
		return nil
	}
	return f.o.Limits()
}

// lower takes back what others need more, or what silence has cost.
func (f *Fleet) lower(limits []Limit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range limits {
		p := f.parts[l.Key]
		if p == nil {
			p = &part{}
			f.parts[l.Key] = p
		}
		l.Want = min(l.Most, max(l.Want, p.Want*3/4)) // it comes and goes
		p.Limit = l
	}
	f.lapse()
	for _, p := range f.parts {
		if p.target = f.target(p); f.err == nil {
			p.may = min(p.may, p.target)
		}
	}
}

// lapse leaves the alone part when no beat came to the others for a while. The
// caller holds mu.
func (f *Fleet) lapse() {
	silent := time.Since(f.ok)
	if silent < f.o.DeadAfter/2 {
		return
	}
	names := f.listed()
	for _, p := range f.parts {
		alone := aloneOf(p.Most, p.Steady, slices.Index(names, f.o.Self), len(names))
		p.may = min(p.may, alone)
		if len(names) == 1 || silent >= 2*f.o.DeadAfter { // by now the others have left it
			p.may = alone
		}
	}
}

// claim is what the next beat says. What is in use is counted after lower.
func (f *Fleet) claim(limits []Limit) map[string]Part {
	f.mu.Lock()
	defer f.mu.Unlock()
	claims := map[string]Part{}
	for _, l := range limits {
		p := f.parts[l.Key]
		if p == nil {
			continue
		}
		claims[l.Key] = Part{Claims: max(l.Used, p.may, min(p.target, p.Most-f.others(p))), Wants: p.Want}
	}
	return claims
}

// confirm makes use of what a beat that began then has claimed, as far as the others
// leave it.
func (f *Fleet) confirm(began time.Time, claims map[string]Part) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lapse() // the beat may have taken long
	f.ok = began
	for key, c := range claims {
		p := f.parts[key]
		if wants := min(c.Claims, p.target); wants > p.may && c.Claims+f.others(p) <= p.Most {
			p.may = wants
		}
	}
}

// others is what the others may use of a limit. The caller holds mu.
func (f *Fleet) others(p *part) (n int) {
	living, names := f.living(), f.listed()
	for _, m := range f.last {
		if m.Name == f.o.Self {
			continue
		}
		// Our clock alone says how long it was silent: the database's may be another by now.
		h, claims := f.heard[m.Name], m.Parts[p.Key].Claims
		silent := time.Since(h.since) >= f.o.DeadAfter
		switch {
		case m.Alive && m.Parts == nil:
			claims = (p.Most + living - 1) / living
		case !m.Alive && silent:
			claims = 0
		}
		if silent || !h.sure {
			claims = max(claims, f.alone(p, m, names))
		}
		n += claims
	}
	return n
}

// alone is what a member that is cut off may use. The caller holds mu.
func (f *Fleet) alone(p *part, m Member, names []string) int {
	rank := slices.Index(names, m.Name)
	if rank < 0 || m.Parts == nil {
		return 0
	}
	return aloneOf(p.Most, p.Steady, rank, len(names))
}

// listed names the members that count, this one too. The caller holds mu.
func (f *Fleet) listed() (names []string) {
	for _, m := range f.last {
		if m.Alive || m.Name == f.o.Self || m.Seen >= 0 && m.Seen < forgetAfter.Seconds() {
			names = append(names, m.Name)
		}
	}
	if i, found := slices.BinarySearch(names, f.o.Self); !found {
		names = slices.Insert(names, i, f.o.Self)
	}
	return names
}

// aloneOf is what a member of n keeps of a limit while it hears of nobody. All of them
// together keep half at most.
func aloneOf(most int, steady bool, rank, n int) int {
	switch few := most / (8 * n); {
	case n == 1:
		return most
	case steady && most >= 2*n:
		return most / (2 * n)
	case few > 0:
		return few
	case rank < most/2: // of a limit of 1 nobody
		return 1
	}
	return 0
}

// target is this member's part by what all say. The caller holds mu.
func (f *Fleet) target(p *part) int {
	var names []string
	var wants []int
	most, living, listed := p.Most, f.living(), f.listed()
	keep := p.Most / (8 * len(listed))
	if p.Steady {
		keep = p.Most / (2 * len(listed))
	}
	add := func(name string, want int) {
		names, wants = append(names, name), append(wants, max(want, keep))
	}
	for _, m := range f.last {
		switch {
		case m.Name == f.o.Self:
		case m.Alive && m.Parts == nil:
			most -= (p.Most + living - 1) / living
		case m.Alive:
			add(m.Name, m.Parts[p.Key].Wants)
		default:
			most -= f.alone(p, m, listed)
		}
	}
	rank, _ := slices.BinarySearchFunc(names, f.o.Self, strings.Compare)
	names, wants = slices.Insert(names, rank, f.o.Self), slices.Insert(wants, rank, max(p.Want, keep))
	// The clock goes on while the database is away: members started together stay so.
	now := time.Now()
	if !f.clock.IsZero() {
		now = f.clock.Add(time.Since(f.at))
	}
	return divide(max(0, most), wants, int(now.Unix()/60))[rank]
}

// divide gives each what it wants, or an equal part of what others leave, and
// what nobody wants to all alike. What doesn't divide goes round by turn.
func divide(limit int, wants []int, turn int) []int {
	parts := make([]int, len(wants))
	all := false
	for limit > 0 {
		var open []int
		for i := range wants {
			if all || parts[i] < wants[i] {
				open = append(open, i)
			}
		}
		if len(open) == 0 {
			all = true
			continue
		}
		each := limit / len(open)
		if each == 0 {
			for i := range limit {
				parts[open[(turn+i)%len(open)]]++
			}
			break
		}
		for _, i := range open {
			n := each
			if !all {
				n = min(each, wants[i]-parts[i])
			}
			parts[i], limit = parts[i]+n, limit-n
		}
	}
	return parts
}
