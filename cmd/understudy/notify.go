package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
	"github.com/understudy-mx/understudy/internal/notify"
)

// notifier tells the operator of outages, nil when nobody is to be told.
func (d *daemon) notifier() *notify.Notifier {
	c := d.cfg.Notify
	if len(c.Mail) == 0 && c.Webhook == "" {
		return nil
	}
	n := &notify.Notifier{Host: d.cfg.Hostname, After: c.After, Webhook: c.Webhook, Book: d.outages, Log: d.log, Metrics: d.metrics,
		Client: &http.Client{CheckRedirect: notify.NoRedirect}}
	if len(c.Mail) > 0 {
		n.Mail = d.mailOperator
	}
	return n
}

// mailOperator puts mail to the operator in line for the primary, like a DSN: its
// reverse-path is null, and it isn't counted as accepted.
func (d *daemon) mailOperator(ctx context.Context, subject, text string) error {
	env := &envelope.Envelope{Report: true}
	for _, to := range d.cfg.Notify.Mail {
		m, err := envelope.ParseMailbox(to)
		if err != nil {
			return fmt.Errorf("[notify] mail: %w", err)
		}
		env.To = append(env.To, envelope.Recipient{Path: envelope.ForwardPath{Mailbox: m}, Notify: "NEVER"})
	}
	draft, err := d.queue.Begin(env)
	if err != nil {
		return err
	}
	defer draft.Abort()
	for _, line := range []string{
		"From: Understudy <understudy@" + d.cfg.Hostname + ">",
		"To: " + strings.Join(d.cfg.Notify.Mail, ",\r\n "),
		"Subject: " + subject,
		"Date: " + time.Now().Format("Mon, 02 Jan 2006 15:04:05 -0700"),
		"Message-ID: <" + draft.ID() + "@" + d.cfg.Hostname + ">",
		"Auto-Submitted: auto-generated", // RFC 3834 §5
		"MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "",
	} {
		text := line + "\r\n"
		if _, err := draft.Write([]byte(text)); err != nil {
			return err
		}
	}
	ascii := strings.Map(func(r rune) rune {
		if r > '~' {
			return '?'
		}
		return r
	}, text)
	if _, err := draft.Write([]byte(strings.ReplaceAll(ascii, "\n", "\r\n"))); err != nil {
		return err
	}
	return draft.Commit(ctx)
}
