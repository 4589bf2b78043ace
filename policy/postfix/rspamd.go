package postfix

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/host"
	"github.com/understudy-mx/understudy/internal/lister"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// What rspamd's greylisting knows is in Redis: for each envelope, hashed, when it was first
// put off, for a day from when it was let in last. So the day's rest says when that was. rspamd
// itself prints its settings, whatever files they come from.

// rspamdRest is how long its settings and its Redis are left alone.
const rspamdRest = time.Minute

const whyRspamdUnread = "whom its greylisting has let in can't be read"

// RspamdRemedy gives the publisher's unit the right to run what makes code at run time.
const RspamdRemedy = "let the publisher run rspamadm: install -D -m 644 /usr/share/understudy/rspamd.conf /etc/systemd/system/understudy-publish.service.d/rspamd.conf, " +
	"systemctl daemon-reload, systemctl restart understudy-publish"

// rspamd returns the greylisting of an rspamd with whom it has let in, nil where it
// puts nobody off. note is what a report should say of it.
func (i *importer) rspamd(file string) (*policy.RspamdGreylist, string) {
	known, err := i.src.Memo.greylist("rspamd:"+file, "", rspamdRest, func() (*greyKnown, error) {
		ctx, cancel := context.WithTimeout(i.ctx, greyTimeout)
		defer cancel()
		start := time.Now()
		k, err := readRspamd(ctx, i.filterHost(), file)
		if err == nil {
			k.read, k.took = start, time.Since(start)
		}
		return k, err
	})
	switch {
	case err != nil:
		return nil, whyRspamdUnread + ": " + err.Error()
	case known.rspamd == nil:
		return nil, ""
	}
	note := "whom its greylisting has let in is known"
	switch {
	case known.failing != nil:
		note += fmt.Sprintf(", as of %s: %v", known.read.UTC().Format(time.DateTime), known.failing)
	case known.left > 0:
		note += fmt.Sprintf(", but for the %d oldest", known.left)
	case known.rspamd.Message == "":
		note += "; what it replies isn't, by message_func"
	}
	g := *known.rspamd
	g.Known = fmt.Sprintf("rspamd-%d-envelopes", len(i.spec.Filters.Milters)+1)
	i.spec.Tables[g.Known] = known.triplets
	i.polled["rspamd:"+file] = true
	return &g, note
}

// rspamdConfig is the part of rspamd's settings that concerns its greylisting.
type rspamdConfig struct {
	Greylist *struct {
		redisServers
		Redis   *redisServers `json:"redis"`
		Enabled *bool         `json:"enabled"`

		Prefix  *string  `json:"key_prefix"`
		Expire  *float64 `json:"expire"`
		Timeout *float64 `json:"timeout"`
		IPv4    *int     `json:"ipv4_mask"`
		IPv6    *int     `json:"ipv6_mask"`
		Action  *string  `json:"action"`
		Message *string  `json:"message"`
		Timed   bool     `json:"report_time"`
		Func    uclText  `json:"message_func"`
	} `json:"greylist"`
	Redis struct {
		redisServers
		Greylist *redisServers `json:"greylist"`
		Disabled []string      `json:"disabled_modules"`
	} `json:"redis"`
}

// redisServers are where a module of rspamd finds Redis.
type redisServers struct {
	Servers  uclText `json:"servers"`
	Server   uclText `json:"server"`
	Read     uclText `json:"read_servers"`
	DB       uclText `json:"db"`
	DBName   uclText `json:"dbname"`
	Database uclText `json:"database"`
	Username uclText `json:"username"`
	Password uclText `json:"password"`
	SSL      bool    `json:"ssl"`
}

// uclText is a word of rspamd's settings, or several, with commas between.
type uclText string

func (t *uclText) UnmarshalJSON(b []byte) error {
	var s string
	var list []uclText
	switch {
	case json.Unmarshal(b, &s) == nil:
		*t = uclText(s)
	case json.Unmarshal(b, &list) == nil:
		for n, one := range list {
			if n > 0 {
				*t += ","
			}
			*t += one
		}
	default: // a number
		*t = uclText(b)
	}
	return nil
}

// redis returns where the greylisting's keys are, nil where it has no server.
func (c *rspamdConfig) redis() *redisServers {
	own, module, general := &c.Greylist.redisServers, c.Redis.Greylist, &c.Redis.redisServers
	if c.Greylist.Redis != nil {
		own = c.Greylist.Redis
	}
	for _, d := range c.Redis.Disabled {
		if d == "greylist" {
			general = &redisServers{}
		}
	}
	var all redisServers
	for _, s := range []*redisServers{own, module, general} {
		if s == nil {
			continue
		}
		if all.Servers == "" {
			all.Servers = cmp.Or(s.Read, s.Servers, s.Server)
		}
		all.DB = cmp.Or(all.DB, s.DB, s.DBName, s.Database)
		all.Username, all.Password = cmp.Or(all.Username, s.Username), cmp.Or(all.Password, s.Password)
		all.SSL = all.SSL || s.SSL
	}
	if all.Servers == "" {
		return nil
	}
	return &all
}

// addresses are those of the servers, of which each may have a priority.
func (s *redisServers) addresses() (all []string) {
	list := string(s.Servers)
	for _, rotation := range []string{"random:", "master-slave:", "round-robin:", "sequential:", "hash:"} {
		list = strings.TrimPrefix(list, rotation)
	}
	for _, w := range strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(",; \t\n", r) }) {
		name, rest := w, ""
		if strings.HasPrefix(w, "[") {
			name, rest, _ = strings.Cut(w[1:], "]")
			rest = strings.TrimPrefix(rest, ":")
		} else {
			name, rest, _ = strings.Cut(w, ":")
		}
		if port, _, _ := strings.Cut(rest, ":"); strings.HasPrefix(name, "/") {
			all = append(all, name)
		} else if port == "" {
			all = append(all, net.JoinHostPort(name, "6379"))
		} else {
			all = append(all, net.JoinHostPort(name, port))
		}
	}
	return all
}

// maxRspamdConfig bounds rspamd's settings, in octets.
const maxRspamdConfig = 16 << 20

// readRspamd reads the settings and, where it greylists, the keys.
func readRspamd(ctx context.Context, h *host.Host, file string) (*greyKnown, error) {
	var c rspamdConfig
	said := &bounded{max: maxStderr}
	readErr, err := h.Run(ctx, host.Program{Argv: []string{"rspamadm", "configdump", "-j", "-c", file}, Stderr: said}, func(r io.Reader) error {
		return json.NewDecoder(io.LimitReader(r, maxRspamdConfig)).Decode(&c)
	})
	switch exit := (*host.ExitError)(nil); {
	case errors.As(err, &exit):
		return nil, fmt.Errorf("rspamadm configdump: %w: %.200q", err, strings.TrimSpace(said.String()))
	case err != nil || readErr != nil:
		return nil, fmt.Errorf("rspamadm configdump: %w", cmp.Or(err, readErr))
	}
	g := c.Greylist
	if g == nil || g.Enabled != nil && !*g.Enabled || g.Action != nil && *g.Action != "soft reject" {
		return &greyKnown{}, nil
	}
	r := c.redis()
	switch {
	case r == nil:
		return &greyKnown{}, nil
	case r.SSL:
		return nil, errors.New("its Redis is asked by TLS (ssl)")
	}
	to := &policy.RspamdGreylist{Prefix: or(g.Prefix, "rg"), IPv4: or(g.IPv4, 19), IPv6: or(g.IPv6, 64), Message: or(g.Message, "Try again later"), Timed: g.Timed}
	if g.Func != "" {
		to.Message = ""
	}
	k, err := letIn(ctx, h, r, to.Prefix, duration(or(g.Timeout, 300)), duration(or(g.Expire, 86400)))
	if err == nil {
		k.rspamd = to
	}
	return k, err
}

func or[T any](v *T, usual T) T {
	if v == nil {
		return usual
	}
	return *v
}

func duration(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// letIn lists the envelopes that were let in. Each key is at one of the servers, or at
// all of them; those that don't answer are passed over if one does.
func letIn(ctx context.Context, h *host.Host, r *redisServers, prefix string, timeout, expire time.Duration) (*greyKnown, error) {
	var list []seen
	k := &greyKnown{}
	glob := strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(prefix) + "m" + strings.Repeat("[a-z0-9]", 20)
	answered := false
	var failed error
	for _, addr := range r.addresses() {
		server := lister.Redis{Address: addr, Username: string(r.Username), Password: string(r.Password), DB: string(r.DB), Host: h, Limits: lister.Limits{Time: greyTimeout}}
		err := server.List(ctx, glob, func(key, value string, left time.Duration) error {
			began, err := strconv.ParseInt(value, 10, 63)
			last := time.Now().Add(left - expire)
			if err != nil || left < 0 || last.Sub(time.Unix(began, 0)) < timeout {
				return nil
			}
			if list = append(list, seen{key: key, last: last.Unix()}); len(list) >= 2*maxKnown {
				k.left += newest(&list)
			}
			return nil
		})
		answered, failed = answered || err == nil, errors.Join(failed, err)
	}
	if !answered {
		return nil, cmp.Or(failed, errors.New("it names no server of Redis"))
	}
	k.left += newest(&list)
	keys := make(map[string]bool, len(list))
	for _, s := range list {
		keys[table.Fold(s.key)] = true
	}
	var err error
	k.triplets, err = table.NewSet(sortedKeys(keys))
	return k, err
}
