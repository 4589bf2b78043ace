package relay

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/metrics"
)

// In an outage's first ten minutes somebody is likely to be at work on the
// primary: the backlog should move as soon as it is back.
const (
	eagerProbe   = 2 * time.Second
	eagerFor     = 10 * time.Minute
	defaultProbe = 10 * time.Second
	probeReply   = 30 * time.Second // bound on each reply to a probe
)

// RouteStatus is what is known of a next hop.
type RouteStatus struct {
	Name      string    `json:"name"`
	Address   string    `json:"address"`
	Up        bool      `json:"up"`
	Since     time.Time `json:"since"`      // when it went up or down, or when we began
	LastError string    `json:"last_error"` // of the outage, "" when up
	// WithoutXClient says why it isn't told the clients by XCLIENT, though it
	// should be.
	WithoutXClient string `json:"without_xclient,omitempty"`
	// Live says that clients' sessions are played through to it, as far as that
	// goes.
	Live bool `json:"live,omitempty"`
}

type health uint8

const (
	unknown health = iota // never asked
	up
	down
)

// route is a Route and its health.
type route struct {
	Route
	dest    string
	metrics *metrics.Metrics
	kick    chan struct{} // one token: health changed, look at the timer again

	mu       sync.Mutex // guards what follows
	health   health
	since    time.Time
	back     time.Time // the last outage ended, zero when none has
	lastErr  string
	thorough bool                  // the last outage was none before STARTTLS or MAIL: probes go as far
	unnamed  string                // RouteStatus.WithoutXClient
	sessions map[*session]struct{} // open for mail
	openings map[*opening]struct{} // sessions for mail to be

	mute bool // it doesn't take us for others; the log says so already
	pace pace // of live sessions

	asking, live *pool
	resting      *atomic.Bool // the Client's
}

func newRoute(dest string, r Route, m *metrics.Metrics) *route {
	if r.TLS == "" {
		r.TLS = TLSOpportunistic
	}
	if r.ProbeInterval <= 0 {
		r.ProbeInterval = defaultProbe
	}
	if r.MaxAsking <= 0 {
		r.MaxAsking = 10
	}
	if r.MaxLive <= 0 {
		r.MaxLive = 50
	}
	r.Timeouts.defaults()
	m.PrimaryUp.WithLabelValues(r.Name).Set(0)
	m.OutageStart.WithLabelValues(r.Name).Set(0)
	m.WithoutXClient.WithLabelValues(r.Name).Set(0)
	return &route{Route: r, dest: dest, metrics: m, kick: make(chan struct{}, 1), since: time.Now(),
		resting: new(atomic.Bool), sessions: make(map[*session]struct{}), openings: make(map[*opening]struct{}),
		asking: newPool(r.MaxAsking, 0, nil), live: newPool(r.MaxLive, max(min(10, r.MaxLive), r.MaxLive/2), m.LiveOpen)}
}

// opening is a session that is being opened.
type opening struct {
	since  time.Time
	cancel context.CancelFunc
}

// opening returns the context under which to open a session: it ends when an
// outage is over that began since.
func (r *route) opening(ctx context.Context) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	o := &opening{time.Now(), cancel}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.openings[o] = struct{}{}
	return ctx, func() {
		r.mu.Lock()
		delete(r.openings, o)
		r.mu.Unlock()
		cancel()
	}
}

func (r *route) opened(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[s] = struct{}{}
}

func (r *route) closed(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, s)
}

// observe takes over the outcome of opening a session. It says whether the
// health changed, or what keeps the route down.
func (r *route) observe(err error) (is health, changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, reason := r.health, r.lastErr
	var refused *refusal
	errors.As(err, &refused)
	switch {
	case err == nil:
		r.health, r.lastErr = up, ""
	case len(r.sessions) > 0 && refused != nil:
		return was, false // it serves us elsewhere: too many sessions, not an outage
	default:
		r.health, r.lastErr = down, clean([]byte(err.Error()))
	}
	if refused != nil && (refused.step == stepStartTLS || refused.step == stepMail) {
		r.thorough = true
	}
	if r.health == was {
		return was, withoutDigits(r.lastErr) != withoutDigits(reason)
	}
	now := time.Now()
	isUp, outage := 0.0, float64(now.Unix())
	if r.health == up {
		isUp, outage = 1, 0
		r.dropStale()
	}
	if r.since = now; was == down {
		r.back = now
	}
	r.metrics.PrimaryUp.WithLabelValues(r.Name).Set(isUp)
	r.metrics.OutageStart.WithLabelValues(r.Name).Set(outage)
	select {
	case r.kick <- struct{}{}:
	default:
	}
	return r.health, true
}

// withoutDigits leaves out ports, which differ in errors that are alike.
func withoutDigits(s string) string {
	return strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, s)
}

// dropStale breaks off the sessions that the outage, now over, has silenced, if
// only before their greeting: a primary that was rebooted knows nothing of them,
// and they would wait for a reply for up to ten minutes. The caller holds mu.
func (r *route) dropStale() {
	for o := range r.openings {
		if o.since.Before(r.since) {
			o.cancel()
		}
	}
	for s := range r.sessions {
		if s.heard.Load() < r.since.UnixNano() {
			s.raw.abort()
		}
	}
}

// interval is the time from one probe's start to the next one's.
func (r *route) interval() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.health == down && time.Since(r.since) < eagerFor {
		return min(eagerProbe, r.ProbeInterval)
	}
	return r.ProbeInterval
}

// note tells a route's health what opening a session came to.
func (c *Client) note(r *route, err error) {
	switch health, changed := r.observe(err); {
	case !changed:
	case health == up:
		c.log.Info("next hop is up", "route", r.Name, "address", r.Address)
		if !c.resting.Load() {
			c.onUp(r.dest)
		}
	default:
		c.log.Warn("next hop is down", "route", r.Name, "address", r.Address, "err", err)
	}
}

// noteFit tells a route's health whether a session that is over could bring mail.
func (c *Client) noteFit(r *route, s *session, err error) {
	var refused *refusal
	if s.done > 0 {
		r.mu.Lock()
		r.thorough = false
		r.mu.Unlock()
	} else if errors.As(err, &refused) && refused.endsSession() && refused.reply.Code != 421 {
		c.note(r, err)
	}
}

const notOffered = "it doesn't offer us XCLIENT: add our address to smtpd_authorized_xclient_hosts there, or set xclient = false here"

// noteOffer takes over whether a next hop offers XCLIENT.
func (c *Client) noteOffer(r *route, offered string) {
	if offered == "" {
		c.noteXClient(r, notOffered)
		return
	}
	r.mu.Lock()
	lacking := r.unnamed == notOffered
	r.mu.Unlock()
	if lacking {
		c.noteXClient(r, "")
	}
}

// noteOffers takes over what a next hop offers.
func (r *route) noteOffers(offered caps) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pace.caps, r.pace.known = offered, true
}

// noteXClient takes over why a next hop can't be told who the clients are, "" if
// it can, and logs what is new.
func (c *Client) noteXClient(r *route, why string) {
	if !r.XClient {
		return
	}
	r.mu.Lock()
	was := r.unnamed
	r.unnamed = why
	r.mu.Unlock()
	switch {
	case why == was:
	case why == "":
		c.metrics.WithoutXClient.WithLabelValues(r.Name).Set(0)
		c.log.Info("next hop is told the clients again", "route", r.Name)
	default:
		c.metrics.WithoutXClient.WithLabelValues(r.Name).Set(1)
		c.log.Warn("next hop takes us for the client of all mail", "route", r.Name, "address", r.Address, "err", why)
	}
}

// Rest leaves all next hops alone but for probes: none is Up, is asked or has
// sessions played through, until it is called with false. What is under way ends.
func (c *Client) Rest(rest bool) {
	if was := c.resting.Swap(rest); !was || rest {
		return
	}
	for dest := range c.routes {
		if c.Up(dest) {
			c.onUp(dest)
		}
	}
}

// Up says whether dest answered when it was last asked, and isn't left alone.
func (c *Client) Up(dest string) bool {
	r, ok := c.routes[dest]
	if !ok || c.resting.Load() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.health == up
}

// Back says when dest's last outage ended, zero when none has.
func (c *Client) Back(dest string) time.Time {
	r, ok := c.routes[dest]
	if !ok {
		return time.Time{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.back
}

// Status returns the health of all routes, by name.
func (c *Client) Status() []RouteStatus {
	all := make([]RouteStatus, 0, len(c.routes))
	for _, r := range c.routes {
		r.mu.Lock()
		all = append(all, RouteStatus{Name: r.Name, Address: r.Address, Up: r.health == up, Since: r.since, LastError: r.lastErr, WithoutXClient: r.unnamed, Live: r.Live})
		r.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b RouteStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Run probes every route, at once and then at its interval, until ctx ends.
func (c *Client) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, r := range c.routes {
		wg.Go(func() { c.watch(ctx, r) })
	}
	wg.Wait()
}

func (c *Client) watch(ctx context.Context, r *route) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	started := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			started = time.Now()
			if !c.agrees(r) {
				c.probe(ctx, r)
			}
		case <-r.kick:
		}
		timer.Reset(max(0, time.Until(started.Add(r.interval()))))
	}
}

// agrees says that another secondary probes a route, and sees what is known here.
func (c *Client) agrees(r *route) bool {
	if c.elsewhere == nil {
		return false
	}
	isUp, known := c.elsewhere(r.dest)
	r.mu.Lock()
	defer r.mu.Unlock()
	return known && (isUp && r.health == up || !isUp && r.health == down)
}

// Places are those for sessions to a next hop that clients of ours wait for.
type Places struct {
	Dest string
	Live bool // for live sessions; else for asking
	All  int
	Used int // at most, now
	Want int
}

// Places lists them for each next hop.
func (c *Client) Places() (all []Places) {
	c.eachPool(func(dest string, live bool, p *pool) {
		used, want := p.use()
		all = append(all, Places{dest, live, cap(p.seats), used, want})
	})
	return all
}

// Limit has the places shared with others: part is this one's part of all. It is called
// again when that has changed.
func (c *Client) Limit(part func(dest string, live bool, all int) int) {
	c.eachPool(func(dest string, live bool, p *pool) {
		p.withhold(cap(p.seats) - min(cap(p.seats), part(dest, live, cap(p.seats))))
	})
}

func (c *Client) eachPool(fn func(dest string, live bool, p *pool)) {
	for _, r := range c.routes {
		fn(r.dest, false, r.asking)
		if r.Live {
			fn(r.dest, true, r.live)
		}
	}
}

// probe asks whether r's next hop takes sessions: connect, greeting, EHLO, QUIT,
// and STARTTLS where nothing goes without; STARTTLS as sessions for mail say it,
// and MAIL, after one of those failed there. A connect takes no longer than the
// time to the next probe: a SYN of one's own beats waiting for the repetition of
// an unanswered one.
func (c *Client) probe(ctx context.Context, r *route) {
	t, mode := r.Timeouts, r.TLS
	t.Connect = min(t.Connect, r.interval())
	t.Greeting, t.Command = min(t.Greeting, probeReply), min(t.Command, probeReply)
	r.mu.Lock()
	thorough := r.thorough
	r.mu.Unlock()
	if mode != TLSRequire && !thorough {
		mode = TLSOff
	}
	s, err := c.connect(ctx, r, nil, mode, t)
	if err == nil {
		if mode == r.TLS || !s.caps.startTLS { // else it may be offered in TLS
			c.noteOffer(r, s.caps.xclient)
			r.noteOffers(s.caps)
		}
		if thorough {
			err = s.takesMail()
		}
		if err != nil {
			s.conn.Close()
		}
	}
	if ctx.Err() != nil {
		if err == nil {
			s.conn.Close()
		}
		return
	}
	result := "ok"
	if err != nil {
		result = "failed"
	}
	c.metrics.Probes.WithLabelValues(result).Inc()
	c.note(r, err)
	if err == nil {
		if c.asks() || r.Live {
			_ = c.mayAsk(r, s.caps.xclient) // for the log
		}
		s.quit()
	}
}

// takesMail asks by a MAIL whether the session is one for mail.
func (s *session) takesMail() error {
	reply, err := s.call(stepMail, nil, "MAIL FROM:<>")
	if no := (&refusal{stepMail, reply}); err == nil && no.endsSession() {
		return no
	}
	return err
}
