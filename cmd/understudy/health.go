package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/understudy-mx/understudy/internal/envelope"
)

// knockTimeout is how long an accept loop may take in good health.
const knockTimeout = 10 * time.Second

// ready says whether mail can be taken: for /readyz. Its text is ours.
func (d *daemon) ready() error {
	switch {
	case d.stopping.Load():
		return errors.New("stopping")
	case d.current() == nil:
		return errors.New("no policy is held")
	}
	return d.queue.Healthy()
}

// alive says whether the process does its work, or a restart would help: the
// store is written and synced, and each door is answered. A full disk is no
// reason: the door answers 452, and mail flows when there is space again.
func (d *daemon) alive(ctx context.Context) error {
	if err := d.queue.Healthy(); err != nil && !d.noSpace() {
		return err
	}
	for _, door := range d.doors {
		if err := door.knock(ctx, knockTimeout); err != nil {
			return err
		}
	}
	return nil
}

func (d *daemon) noSpace() bool {
	var r *envelope.ReplyError
	return errors.As(d.queue.Ready(0), &r) && r.Reply.Code == 452
}

func (d *daemon) feedWatchdog(ctx context.Context) error { return feedWatchdog(ctx, d.log, d.alive) }

func (d *daemon) notify(state string) { notify(d.log, state) }

// feedWatchdog tells systemd that we live for as long as that is true.
func feedWatchdog(ctx context.Context, log *slog.Logger, alive func(context.Context) error) error {
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("watchdog of systemd is not fed", "err", err)
	}
	if interval <= 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		if err := alive(ctx); err == nil {
			notify(log, sd.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.Error("not alive, the watchdog of systemd is not fed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// notify tells systemd something, if systemd is there.
func notify(log *slog.Logger, state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		log.Warn("notify systemd", "state", state, "err", err)
	}
}
