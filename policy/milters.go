package policy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// MilterUse is one of the primary's milters, as it is asked about one client.
type MilterUse struct {
	Name    string // its endpoint, in one spelling
	Program string // "" when that isn't known

	Version       int // of the protocol
	NoHeaderReply bool
	DefaultAction string
	Connect       time.Duration
	Command       time.Duration
	Content       time.Duration

	follow *milter // our own evaluation; nil when there is none
	defers bool
	grey   *rspamdGreylist // nil: it puts nobody off, or whom it knows isn't known
}

// disableMilters is what smtpd_milter_maps says for none.
const disableMilters = "DISABLE"

// splitMilters splits a list of milters, of which some may be in braces.
func splitMilters(list string) (words []string) {
	start, level := -1, 0
	for i, c := range []byte(list + " ") {
		switch {
		case c == '{':
			level++
		case c == '}' && level > 0:
			level--
		case level == 0 && strings.IndexByte(", \t\r\n", c) >= 0:
			if start >= 0 {
				words = append(words, list[start:i])
			}
			start = -1
			continue
		}
		if start < 0 && i < len(list) {
			start = i
		}
	}
	return words
}

// Use reads an element of smtpd_milters.
func (m *MilterSettings) Use(element string) (u MilterUse, err error) {
	inside, braced := strings.CutPrefix(element, "{")
	if braced {
		if inside, braced = strings.CutSuffix(inside, "}"); !braced {
			return u, fmt.Errorf("milter %.60q: no closing brace", element)
		}
	}
	words := splitMilters(inside)
	if len(words) == 0 {
		return u, errors.New("milter without a name")
	}
	if u.Name, err = envelope.MilterName(words[0]); err != nil {
		return u, err
	}
	protocol := m.Protocol
	u.DefaultAction = strings.ToLower(m.DefaultAction)
	u.Connect, u.Command, u.Content = time.Duration(m.ConnectTimeout)*time.Second, time.Duration(m.CommandTimeout)*time.Second, time.Duration(m.ContentTimeout)*time.Second
	for _, w := range words[1:] {
		w = strings.TrimSuffix(strings.TrimPrefix(w, "{"), "}")
		name, value, assigned := strings.Cut(w, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !assigned {
			return u, fmt.Errorf("milter %.60q: %.40q isn't NAME=VALUE", element, w)
		}
		switch name {
		case "connect_timeout":
			u.Connect, err = ParseTime(value)
		case "command_timeout":
			u.Command, err = ParseTime(value)
		case "content_timeout":
			u.Content, err = ParseTime(value)
		case "protocol":
			protocol = value
		case "default_action":
			u.DefaultAction = strings.ToLower(value)
		default:
			err = fmt.Errorf("milter %.60q: Postfix knows no %.40q", element, name)
		}
		if err != nil {
			return u, err
		}
	}
	return u, u.protocol(protocol)
}

func (u *MilterUse) protocol(list string) error {
	u.Version = 6
	for i, w := range strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(", \t", r) }) {
		switch {
		case w == "no_header_reply":
			u.NoHeaderReply = true
		case i > 0 && !(u.NoHeaderReply && i == 1), w != "2" && w != "3" && w != "4" && w != "6":
			return fmt.Errorf("milter_protocol %.40q: want 2, 3, 4 or 6, and perhaps no_header_reply", list)
		default:
			u.Version = int(w[0] - '0')
		}
	}
	return nil
}

// ParseTime reads a time of main.cf: a number and s, m, h, d or w; seconds without.
func ParseTime(s string) (time.Duration, error) {
	unit := time.Second
	digits := strings.TrimRight(s, "smhdw")
	switch s[len(digits):] {
	case "", "s":
	case "m":
		unit = time.Minute
	case "h":
		unit = time.Hour
	case "d":
		unit = 24 * time.Hour
	case "w":
		unit = 7 * 24 * time.Hour
	default:
		digits = ""
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n <= 0 || n > 1<<20 {
		return 0, fmt.Errorf("%.40q is no time", s)
	}
	return time.Duration(n) * unit, nil
}

// usual are Postfix's defaults, for a policy that has none.
var usual = MilterSettings{ConnectTimeout: 30, CommandTimeout: 30, ContentTimeout: 300}

// MilterSettings are how the primary's milters are asked.
func (s *Snapshot) MilterSettings() *MilterSettings {
	if s.spec.Filters.Asking != nil {
		return s.spec.Filters.Asking
	}
	return &usual
}

// MilterList are the milters that the policy names. more says that smtpd_milter_maps
// may name others.
func (s *Snapshot) MilterList() (list []MilterUse, more bool) {
	return s.milterUses, len(s.milterMaps) > 0
}

// Milters returns the primary's milters for the client, in the order in which
// they are asked; Message.Ask gets the index.
func (s *Session) Milters(context.Context) []MilterUse {
	if s.milters == nil {
		s.milters = s.chooseMilters()
	}
	return s.milters
}

func (s *Session) chooseMilters() []MilterUse {
	if len(s.snap.milterMaps) == 0 {
		return s.snap.milterUses
	}
	h := s.find.one(s.snap.milterMaps, s.client.Addr.String(), "", s.client.Addr, true)
	if !h.ok() {
		return s.snap.milterUses
	}
	list := []MilterUse{}
	value := strings.TrimSpace(s.find.value(h))
	if strings.EqualFold(value, disableMilters) {
		return list
	}
	for _, w := range splitMilters(value) {
		u, err := s.snap.MilterSettings().Use(w)
		if err != nil { // Postfix would call it an unusable milter
			u.DefaultAction = "tempfail"
		}
		for _, known := range s.snap.milterUses {
			if known.Name == u.Name {
				u.Program, u.follow, u.defers, u.grey = known.Program, known.follow, known.defers, known.grey
			}
		}
		list = append(list, u)
	}
	return list
}

// StandIns tells the session for which of the primary's milters a filter of ours
// stands; without it there is none. Call it first.
func (s *Session) StandIns(stands func(*MilterUse) bool) { s.standIn = stands }

func (s *Session) stands(u *MilterUse) bool { return s.standIn != nil && s.standIn(u) }

// unfiltered says that mail is deferred because nobody stands for one of the
// primary's milters.
func (s *Session) unfiltered(ctx context.Context) bool {
	list := s.Milters(ctx)
	for i := range list {
		if u := &list[i]; u.defers && u.follow == nil && !s.stands(u) && !u.grey.passed(s) {
			return true
		}
	}
	return false
}

// askStandIn has the filter that stands for a milter decide about the message. Where
// it greylists an envelope that has passed at the primary, it doesn't count.
func (e *eval) askStandIn(u *MilterUse, i int) status {
	v := e.askFilter(e.ctx, i)
	if u.grey.putsOff(v.Reply) && u.grey.passed(e.Session) {
		return dunno
	}
	switch v.Action {
	case Defer, Reject:
		e.reply, e.rule = v.Reply, v.Rule
		return refused
	case Discard:
		e.discard, e.discardRule = true, v.Rule
	case Hold:
		e.delegate(opHold, v.Rule)
	}
	return dunno
}
