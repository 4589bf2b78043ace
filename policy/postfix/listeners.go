package postfix

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/policy/fidelity"
)

// other is a further service on port 25, and in which parameters it is unlike the
// one that is taken.
type other struct {
	service string
	unlike  []string
}

// findListeners returns the services to stand in for, the first before all:
// those on port 25 that the outside reaches or, if there are none, one where
// smtpd listens.
func findListeners(services []service, name string) ([]service, error) {
	var found []service
	for _, s := range services {
		switch {
		case name != "" && (s.name == name || s.key() == name):
			return []service{s}, nil
		case name != "":
		case s.typ == "inet" && (s.mx() || s.takesMail()):
			found = append(found, s)
		}
	}
	if name != "" {
		return nil, fmt.Errorf("master.cf: no service is called %q", name)
	}
	if len(found) == 0 {
		return nil, errors.New("master.cf: no service of type inet runs smtpd or postscreen, on port 25 or any other; Postfix takes no mail from outside")
	}
	order := func(s service) int {
		n := 4 * s.rank()
		if s.inside {
			n += 2
		}
		if !s.takesMail() { // a proxy's
			n++
		}
		return n
	}
	slices.SortStableFunc(found, func(a, b service) int { return cmp.Compare(order(a), order(b)) })
	first := found[0]
	last := slices.IndexFunc(found, func(s service) bool { return s.off || !s.mx() || s.rank() != first.rank() || s.inside != first.inside })
	if last >= 0 {
		found = found[:max(last, 1)]
	}
	return found, nil
}

// door is how a listener decides.
type door struct {
	service
	behind     service  // the smtpd: the listener itself, or what postscreen hands clients to
	postscreen settings // nil when smtpd listens
	smtpd      settings // with those of its cleanup service
}

func readDoor(ctx context.Context, src *Source, services []service, l service, warnings *[]string) (*door, error) {
	d := &door{service: l, behind: l}
	set, err := readSettings(ctx, src, l, warnings)
	if err != nil {
		return nil, err
	}
	if d.smtpd = set; l.command == "postscreen" {
		d.postscreen = set
		name := set["smtpd_service_name"]
		at := slices.IndexFunc(services, func(s service) bool { return s.typ == "pass" && s.name == name })
		if at < 0 {
			return nil, fmt.Errorf("master.cf: postscreen on %s hands clients to %s/pass, which isn't there", l.key(), name)
		}
		d.behind = services[at]
		if d.smtpd, err = readSettings(ctx, src, d.behind, new([]string)); err != nil {
			return nil, err
		}
	}
	if d.behind.command != "smtpd" {
		return nil, fmt.Errorf("master.cf: service %s runs %s, not smtpd or postscreen", d.behind.key(), d.behind.command)
	}
	return d, d.readCleanup(ctx, src, services)
}

// readCleanup puts the settings that smtpd's cleanup service goes by in place
// of smtpd's own.
func (d *door) readCleanup(ctx context.Context, src *Source, services []service) error {
	cleanup := service{} // no overrides
	for _, s := range services {
		if s.name == d.smtpd["cleanup_service_name"] && s.typ == "unix" && s.command == "cleanup" {
			cleanup = s
		}
	}
	set, err := readSettings(ctx, src, cleanup, new([]string))
	for _, name := range cleanups {
		if v, known := set[name]; known {
			d.smtpd[name] = v
		}
	}
	return err
}

// unlike lists the parameters that decide and that a further service has other
// values of.
func (d *door) unlike(ctx context.Context, src *Source, services []service, further service) ([]string, error) {
	if d.command != further.command {
		return []string{"it runs " + further.command}, nil
	}
	f, err := readDoor(ctx, src, services, further, new([]string))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range Parameters {
		mine, its := d.smtpd, f.smtpd
		if strings.HasPrefix(p.Name, "postscreen_") { // they are derived from smtpd's, too
			mine, its = d.postscreen, f.postscreen
		}
		if p.Class != fidelity.NoDecision && mine[p.Name] != its[p.Name] {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// listeners reports which service was taken.
func (i *importer) listeners() {
	switch {
	case i.conf.off:
		i.item("master.cf", i.conf.service, fidelity.Approximated, "master_service_disable keeps Postfix from starting it, so this may be the wrong instance", "--service NAME takes another service, --config-dir another instance")
	case i.conf.instead:
		i.item("master.cf", i.conf.service, fidelity.Approximated, "no service listens on port 25, so this one is taken", "--service NAME takes another")
	}
	for _, o := range i.conf.others {
		if len(o.unlike) == 0 {
			i.item("master.cf", o.service, fidelity.Exact, "decides as "+i.conf.service, "")
			continue
		}
		i.item("master.cf", o.service, fidelity.NotReplicated, "it listens on port 25, too, and decides otherwise: "+strings.Join(o.unlike, ", "),
			"every client is served as by "+i.conf.service+"; --service "+o.service+" takes the other")
	}
}
