package lister

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-ldap/ldap/v3"
)

// pageSize is below what Active Directory and most others allow.
const pageSize = 500

// Entry is what a directory holds under a name.
type Entry struct {
	DN         string
	Attributes []Attribute // in the server's order
}

// Attribute is one of an entry, its name as the server writes it.
type Attribute struct {
	Name   string // with options: "mail;lang-en"
	Values []string
}

// Values are those of an attribute, under whatever options.
func (e Entry) Values(name string) (all []string) {
	for _, a := range e.Attributes {
		if base, _, _ := strings.Cut(a.Name, ";"); strings.EqualFold(base, name) || strings.EqualFold(a.Name, name) {
			all = append(all, a.Values...)
		}
	}
	return all
}

// What a directory answers to one question, for good.
var (
	ErrNoObject = errors.New("no such object")
	ErrRefused  = errors.New("the directory refuses the search")
)

// Directory is a listing's connection to an LDAP server. It isn't safe for
// concurrent use.
type Directory struct {
	s   *Source
	ctx context.Context
	m   *meter
	// Questions have a connection of their own: a search between two pages
	// may end the listing of pages.
	pages, questions *ldap.Conn
}

// Directory connects, and disconnects when use returns.
func (s *Source) Directory(ctx context.Context, use func(*Directory) error) error {
	return s.bounded(ctx, func(ctx context.Context, m *meter) error {
		d := &Directory{s: s, ctx: ctx, m: m}
		defer d.close()
		err := use(d)
		var own *Error
		if errors.As(err, &own) || errors.Is(err, ErrRows) {
			return err
		}
		return theirs(err)
	})
}

// connect makes one of the connections, unless it stands.
func (d *Directory) connect(conn **ldap.Conn) (err error) {
	if *conn != nil {
		return nil
	}
	c, err := d.s.ldapConnect(d.ctx, d.m)
	if err == nil {
		*conn = c
		context.AfterFunc(d.ctx, func() { c.Close() }) // as bounded ends it, at the latest
	}
	return err
}

func (d *Directory) close() {
	for _, c := range []*ldap.Conn{d.pages, d.questions} {
		if c != nil {
			c.Close()
		}
	}
}

// Search calls entry for everything that a search finds: it asks for page
// after page, RFC 2696; a server that doesn't know pages answers all at once.
func (d *Directory) Search(search Search, entry func(Entry) error) error {
	request, err := d.s.ldapRequest(search)
	if err != nil {
		return err
	}
	if err := d.connect(&d.pages); err != nil {
		return err
	}
	paging := ldap.NewControlPaging(pageSize)
	request.Controls = []ldap.Control{paging}
	for {
		result, err := d.pages.Search(request)
		if err != nil {
			return d.failed(err)
		}
		for _, e := range result.Entries {
			found, err := d.entry(e)
			if err != nil {
				return err
			}
			if err := entry(found); err != nil {
				return err
			}
		}
		next, ok := ldap.FindControl(result.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		if !ok || len(next.Cookie) == 0 {
			return nil
		}
		paging.SetCookie(next.Cookie)
	}
}

// Ask puts one question as Postfix does: without pages, for limit entries at
// most unless that is 0. The error is ErrNoObject or ErrRefused when the
// directory will answer alike another time.
func (d *Directory) Ask(search Search, limit int) ([]Entry, error) {
	request, err := d.s.ldapRequest(search)
	if err != nil {
		return nil, err
	}
	if err := d.connect(&d.questions); err != nil {
		return nil, err
	}
	request.SizeLimit = limit
	result, err := d.questions.Search(request)
	switch {
	case ldap.IsErrorAnyOf(err, ldap.LDAPResultNoSuchObject):
		return nil, ErrNoObject
	case ldap.IsErrorAnyOf(err, ldap.LDAPResultSizeLimitExceeded, ldap.LDAPResultAdminLimitExceeded, ldap.LDAPResultInvalidDNSyntax,
		ldap.LDAPResultInsufficientAccessRights, ldap.LDAPResultReferral):
		return nil, ErrRefused
	case err != nil:
		return nil, d.failed(err)
	}
	all := make([]Entry, len(result.Entries))
	for n, e := range result.Entries {
		if all[n], err = d.entry(e); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (d *Directory) failed(err error) error {
	setting, remedy := connectFailure(err)
	return d.s.fail(cmp.Or(setting, "server_host"), remedy, err)
}

func (d *Directory) entry(e *ldap.Entry) (Entry, error) {
	found := Entry{e.DN, make([]Attribute, len(e.Attributes))}
	for n, a := range e.Attributes {
		if strings.Contains(strings.ToLower(a.Name), ";range=") {
			return found, d.s.fail("attribute", "let the directory tell it whole (MaxValRange)", fmt.Errorf("%s of %s comes in parts", a.Name, e.DN))
		}
		found.Attributes[n] = Attribute{a.Name, a.Values}
	}
	return found, d.m.row()
}
