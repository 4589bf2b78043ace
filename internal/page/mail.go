package page

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/letter"
	"github.com/understudy-mx/understudy/queue"
)

// The bounds of what is shown of the queue.
const (
	maxWaiting    = 5
	maxHeld       = 100
	maxRecipients = 10              // of a message
	walkTimeout   = 5 * time.Second // held messages may be far back in line
)

// message is one as it is shown.
type message struct {
	ID         string      `json:"id"`
	Accepted   time.Time   `json:"accepted"`
	Size       int64       `json:"size"`
	From       string      `json:"from"`
	Client     string      `json:"client"`
	Recipients []recipient `json:"recipients"`
	More       int         `json:"more,omitempty"` // recipients that aren't shown
	AllHeld    bool        `json:"all_held"`
	Vouched    string      `json:"vouched,omitempty"` // by whom, for the sender: it may be returned
	Report     bool        `json:"report,omitempty"`  // a DSN of our own
}

type recipient struct {
	Address  string    `json:"address"`
	State    string    `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Reply    string    `json:"reply,omitempty"`
	HeldBy   string    `json:"held_by,omitempty"`
	Rule     string    `json:"rule,omitempty"` // that let it in
	Attempts int       `json:"attempts"`
	Next     time.Time `json:"next,omitzero"`
}

func shown(i queue.Info) message {
	m := message{ID: i.ID, Accepted: i.Accepted, Size: i.Size, From: show(i.From), AllHeld: allHeld(i), Vouched: i.Auth.Vouched, Report: i.Report,
		Client: show(fmt.Sprintf("%s[%s]", i.Client.Name, i.Client.Addr))}
	for k, r := range i.Recipients {
		if k == maxRecipients {
			m.More = len(i.Recipients) - k
			break
		}
		m.Recipients = append(m.Recipients, recipient{Address: show(r.Address), State: r.State, Reason: r.Reason, Reply: show(r.Reply),
			HeldBy: show(r.HeldBy), Rule: show(r.Rule), Attempts: r.Attempts, Next: r.NextAttempt})
	}
	return m
}

func held(r queue.RecipientInfo) bool { return r.State == "held" }

func anyHeld(i queue.Info) bool { return slices.ContainsFunc(i.Recipients, held) }

func allHeld(i queue.Info) bool {
	return !slices.ContainsFunc(i.Recipients, func(r queue.RecipientInfo) bool { return !held(r) })
}

// mailNow is the mail that is shown. Cut says that there may be more than that.
type mailNow struct {
	Waiting []message `json:"waiting"`
	Held    []message `json:"held"`
	Cut     bool      `json:"cut"`
	Read    bool      `json:"read"` // what they say may be read
}

var errFull = errors.New("enough")

func (p *Page) mail(w http.ResponseWriter, r *http.Request, who caller) {
	if !who.addresses {
		control.Fail(w, http.StatusForbidden, errors.New("addresses are not for you: [web] show_addresses"))
		return
	}
	select {
	case p.walking <- struct{}{}:
		defer func() { <-p.walking }()
	case <-r.Context().Done():
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), walkTimeout)
	defer cancel()
	status, err := p.o.Desk.Status(ctx)
	if err != nil {
		control.Fail(w, http.StatusServiceUnavailable, errors.New(show(err.Error())))
		return
	}
	list := mailNow{Waiting: []message{}, Held: []message{}, Read: p.o.ShowMail}
	err = p.o.Desk.Messages(ctx, func(i queue.Info) error {
		switch {
		case anyHeld(i) && len(list.Held) < maxHeld:
			list.Held = append(list.Held, shown(i))
		case !anyHeld(i) && len(list.Waiting) < maxWaiting:
			list.Waiting = append(list.Waiting, shown(i))
		}
		if len(list.Waiting) == min(maxWaiting, status.Messages-status.Held) && len(list.Held) == min(maxHeld, status.Held) {
			return errFull
		}
		return nil
	})
	list.Cut = status.Held > maxHeld || err != nil && !errors.Is(err, errFull)
	answer(w, list)
}

// read sends what a message says, as text without anything active.
func (p *Page) read(w http.ResponseWriter, r *http.Request, who caller) {
	if !p.o.ShowMail || !who.addresses {
		control.Fail(w, http.StatusForbidden, errors.New("mail is not for you to read here: [web] show_mail"))
		return
	}
	id := r.PathValue("id")
	body, err := p.o.Desk.Body(r.Context(), id)
	if err != nil {
		control.Fail(w, http.StatusNotFound, errors.New(show(err.Error())))
		return
	}
	defer body.Close()
	p.o.Log.Info("mail read on the page", "id", show(id), "by", who.name)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_ = letter.Write(w, body) // fails only when the reader has gone, or the queue's disk
}

// settle releases, returns or removes a held message.
func (p *Page) settle(w http.ResponseWriter, r *http.Request, who caller) {
	id, what := r.PathValue("id"), r.PathValue("what")
	do, ok := map[string]func(context.Context, string) error{"release": p.o.Desk.Release, "return": p.o.Desk.Return, "remove": p.o.Desk.Remove}[what]
	switch {
	case !ok:
		control.Fail(w, http.StatusNotFound, errors.New("a message is released, returned or removed"))
		return
	case !who.addresses:
		control.Fail(w, http.StatusForbidden, errors.New("held mail is not yours to settle: [web] show_addresses"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	info, err := p.o.Desk.Message(ctx, id)
	if err == nil {
		switch {
		case !anyHeld(info):
			err = errors.New("it is not held any more")
		case what == "remove" && !allHeld(info):
			err = errors.New("it still waits for other recipients; release it, or see `understudy queue remove`")
		default:
			err = do(ctx, id)
		}
	}
	if err != nil {
		control.Fail(w, http.StatusConflict, errors.New(show(err.Error())))
		return
	}
	p.o.Log.Info("held mail settled on the page", "id", info.ID, "what", what, "by", who.name)
	answer(w, struct{}{})
}
