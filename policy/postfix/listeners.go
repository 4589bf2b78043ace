package postfix

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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

func (s service) hostPort() (host, port string) {
	if i := strings.LastIndexByte(s.name, ':'); i >= 0 {
		return strings.Trim(s.name[:i], "[]"), s.name[i+1:]
	}
	return "", s.name
}

// mx says that other hosts deliver to the service.
func (s service) mx() bool {
	_, port := s.hostPort()
	return s.typ == "inet" && (port == "25" || port == "smtp")
}

// rank orders services by how likely mail from outside comes to them: on port 25,
// then others, submission after them, and last what only this host reaches, such
// as the way back from a content filter.
func (s service) rank() int {
	host, port := s.hostPort()
	a, err := netip.ParseAddr(host)
	local := host == "localhost" || err == nil && a.IsLoopback()
	switch {
	case s.mx() && !local:
		return 0
	case s.mx():
		return 1
	case local:
		return 4
	case slices.Contains([]string{"587", "submission", "465", "smtps", "submissions"}, port):
		return 3
	}
	return 2
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
		case s.mx() || s.typ == "inet" && (s.command == "smtpd" || s.command == "postscreen"):
			found = append(found, s)
		}
	}
	if name != "" {
		return nil, fmt.Errorf("master.cf: no service is called %q", name)
	}
	if len(found) == 0 {
		return nil, errors.New("master.cf: no service of type inet runs smtpd or postscreen, on port 25 or any other; Postfix takes no mail from outside")
	}
	slices.SortStableFunc(found, func(a, b service) int { return a.rank() - b.rank() })
	first := found[0]
	return slices.DeleteFunc(found, func(s service) bool { return s != first && (!s.mx() || s.rank() != first.rank()) }), nil
}

// differences are the parameters that decide and that a further service has other
// values of.
func (c *config) differences(ctx context.Context, src *Source, taken, further service) (unlike []string, err error) {
	if taken.command != further.command {
		return []string{"it runs " + further.command}, nil
	}
	set, err := readSettings(ctx, src, further, new([]string))
	if err != nil {
		return nil, err
	}
	for _, p := range Parameters {
		if further.command != "postscreen" && strings.HasPrefix(p.Name, "postscreen_") {
			continue // derived from smtpd's
		}
		if p.Class != fidelity.NoDecision && set[p.Name] != c.smtpd[p.Name] {
			unlike = append(unlike, p.Name)
		}
	}
	slices.Sort(unlike)
	return unlike, nil
}

// listeners reports which service was taken.
func (i *importer) listeners() {
	if i.conf.instead {
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
