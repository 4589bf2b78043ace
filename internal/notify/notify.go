// Package notify tells the operator that an outage of the primary has begun and that
// it is over: by mail through the primary, once that is back, and by a webhook at once.
//
//	POST /hook
//	{"event": "outage_began", "host": "mx2.example.org", "outage": 7, "route": "primary", "began": "2026-07-28T03:12:04Z", …}
//
// Nothing waits for either. The book of outages knows what was told, so that a restart
// goes on where it was. There are no addresses and no secrets in what a webhook gets,
// and the webhook's own address, which may hold one, is never logged.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/understudy-mx/understudy/internal/outage"
	"github.com/understudy-mx/understudy/metrics"
)

// The ways, as the book and the metric name them.
const (
	byMail = "mail"
	byHook = "webhook"
)

// What was told last of an outage.
const (
	began = "began"
	ended = "ended"
)

// Bounds of telling.
const (
	every    = time.Second
	patience = 10 * time.Second // with a webhook
	first    = 10 * time.Second // before a second try, doubled each time
	most     = 10 * time.Minute // between two tries
	tooOld   = 24 * time.Hour   // nobody is told what is older
	maxReply = 4 << 10
)

// Notifier tells.
type Notifier struct {
	Host    string
	After   time.Duration // an outage that is over sooner is told to nobody
	Webhook string        // "": none
	Client  *http.Client
	Mail    func(ctx context.Context, subject, text string) error // nil: none
	Book    *outage.Book
	Log     *slog.Logger
	Metrics *metrics.Metrics
}

// Run tells until ctx ends.
func (n *Notifier) Run(ctx context.Context) error {
	ways := map[string]func(context.Context, *outage.Outage, string) error{}
	if n.Mail != nil {
		ways[byMail] = n.mail
	}
	if n.Webhook != "" {
		ways[byHook] = n.post
	}
	done := make(chan struct{}, len(ways))
	for way, tell := range ways {
		go func() {
			n.loop(ctx, way, tell)
			done <- struct{}{}
		}()
	}
	for range len(ways) {
		<-done
	}
	return nil
}

// loop tells by one way, one thing after another.
func (n *Notifier) loop(ctx context.Context, way string, tell func(context.Context, *outage.Outage, string) error) {
	wait, tries := every, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		wait = every
		if o, what := n.next(way, time.Now()); o != nil {
			err := tell(ctx, o, what)
			switch {
			case err == nil:
				n.Book.Tell(o.ID, way, what)
				n.Metrics.Notices.WithLabelValues(way, "sent").Inc()
				tries = 0
			case ctx.Err() == nil:
				n.Metrics.Notices.WithLabelValues(way, "failed").Inc()
				if tries == 0 {
					n.Log.Error("the operator can't be told of an outage; it is tried again", "way", way, "outage", o.ID, "event", what, "err", err)
				}
				wait = min(first<<min(tries, 10), most)
				tries++
			}
		}
		timer.Reset(wait*9/10 + rand.N(wait/5+1))
	}
}

// next is what has to be told by a way.
func (n *Notifier) next(way string, now time.Time) (*outage.Outage, string) {
	for _, o := range n.Book.List() {
		told := o.Told[way]
		switch {
		case told == ended, now.Sub(o.Began) < n.After && o.Ended.IsZero():
		case o.Ended.IsZero():
			if told == "" && now.Sub(o.Began) < tooOld {
				return &o, began
			}
		case now.Sub(o.Ended) > tooOld, o.Length(now) < n.After && told == "":
		case told == "" && way == byMail: // it is over: both at once would say less
			return &o, ended
		case told == "" && now.Sub(o.Began) < tooOld:
			return &o, began
		default:
			return &o, ended
		}
	}
	return nil, ""
}

// event is what a webhook gets.
type event struct {
	Event    string    `json:"event"` // outage_began, outage_ended
	Host     string    `json:"host"`
	Outage   int       `json:"outage"`
	Route    string    `json:"route"`
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended,omitzero"`
	Seconds  int64     `json:"seconds"`
	Accepted uint64    `json:"accepted_messages"`
	Refused  uint64    `json:"refused_verdicts"`
	Saved    uint64    `json:"saved_messages"`
}

func (n *Notifier) post(ctx context.Context, o *outage.Outage, what string) error {
	e := event{Event: "outage_" + what, Host: n.Host, Outage: o.ID, Route: o.Route, Began: o.Began.UTC(), Seconds: int64(o.Length(time.Now()).Seconds()),
		Accepted: o.Accepted, Refused: o.Refusals(), Saved: o.Saved}
	if what == ended {
		e.Ended = o.Ended.UTC()
	}
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.Webhook, bytes.NewReader(body))
	if err != nil {
		return errors.New("the webhook's address is none") // the error would quote it
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "understudy")
	resp, err := n.Client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address
		}
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxReply) // so that the connection can be used again
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the webhook answers %d", resp.StatusCode)
	}
	return nil
}

// NoRedirect is for http.Client.CheckRedirect: what is told goes where the operator
// said, and nowhere else.
func NoRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func (n *Notifier) mail(ctx context.Context, o *outage.Outage, what string) error {
	subject, text := fmt.Sprintf("%s: the primary doesn't answer", n.Host), "An outage of the primary has begun. Mail is kept here until it is back.\n\n"
	if what == ended {
		subject = fmt.Sprintf("%s: the primary is back after %s", n.Host, o.Length(time.Now()).Round(time.Second))
		text = fmt.Sprintf("An outage of the primary is over. `understudy outage show %d` tells how its backlog drains.\n\n", o.ID)
	}
	for _, f := range outage.Facts(o, time.UTC, time.Now()) {
		text += f.Name + ": " + f.Text + "\n"
	}
	return n.Mail(ctx, subject, text)
}
