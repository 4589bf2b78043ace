// Package service runs the parts of a daemon under systemd until it is asked to stop
// or one of them ends, and then stops them in an order that loses nothing. It sends
// READY when all run, RELOADING while files are read again on SIGHUP, STOPPING at
// the end, and feeds the watchdog while the daemon is alive (sd_notify(3)).
//
// It also opens listeners and watches files.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/understudy-mx/understudy/internal/repeat"
)

// Frame holds a daemon's parts.
type Frame struct {
	Alive    func(context.Context) error // fails when a restart would help
	Reload   func(context.Context)       // reads all files again
	Stopping func()                      // called when the stop begins; may be nil

	log         *slog.Logger
	often       repeat.Log
	hup         chan os.Signal
	front, back []part
}

type part struct {
	what string
	work func(context.Context) error
}

// New takes SIGHUP from here on, which asks for a reload.
func New(log *slog.Logger) *Frame {
	f := &Frame{log: log, hup: make(chan os.Signal, 1)}
	signal.Notify(f.hup, syscall.SIGHUP)
	return f
}

// Front adds a part that ends as soon as the process is to stop: it brings work.
func (f *Frame) Front(what string, work func(context.Context) error) {
	f.front = append(f.front, part{what, work})
}

// Back adds a part that ends after those in front: it does the work.
func (f *Frame) Back(what string, work func(context.Context) error) {
	f.back = append(f.back, part{what, work})
}

// Listening logs where a part can be reached.
func (f *Frame) Listening(what string, l net.Listener) {
	f.log.Info("listening", "for", what, "addr", l.Addr().String())
}

// Web adds the pages for monitoring; l may be nil.
func (f *Frame) Web(l net.Listener, pages http.Handler) {
	if l == nil {
		return
	}
	f.Listening("metrics", l)
	f.Back("metrics", func(ctx context.Context) error {
		s := &http.Server{
			Handler:           pages,
			ReadHeaderTimeout: 10 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
		}
		stop := context.AfterFunc(ctx, func() { s.Close() })
		defer stop()
		if err := s.Serve(l); ctx.Err() == nil {
			return err
		}
		return nil
	})
}

// Run runs the parts until ctx ends or one of them does, which is an error. about
// is logged when all run.
func (f *Frame) Run(ctx context.Context, about ...any) error {
	defer signal.Stop(f.hup)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBehind()
	start := func(ctx context.Context, parts []part) *sync.WaitGroup {
		var group sync.WaitGroup
		for _, p := range parts {
			group.Go(func() {
				err := p.work(ctx)
				if err == nil && ctx.Err() == nil {
					err = errors.New("ended unasked")
				}
				if err != nil {
					stop(fmt.Errorf("%s: %w", p.what, err))
				}
			})
		}
		return &group
	}
	back := start(behind, f.back)
	front := start(ctx, append(f.front, part{"reload", f.reload}, part{"watchdog", f.feedWatchdog}))
	f.notify(sd.SdNotifyReady)
	f.log.Info("ready", about...)

	<-ctx.Done()
	if f.Stopping != nil {
		f.Stopping()
	}
	f.notify(sd.SdNotifyStopping)
	f.log.Info("stopping")
	front.Wait()
	stopBehind()
	back.Wait()
	f.log.Info("stopped")
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (f *Frame) reload(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.hup:
		}
		f.log.Info("asked to read the files again")
		f.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
		f.Reload(ctx)
		f.notify(sd.SdNotifyReady)
	}
}

// feedWatchdog tells systemd that we live for as long as that is true.
func (f *Frame) feedWatchdog(ctx context.Context) error {
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		f.log.Warn("watchdog of systemd is not fed", "err", err)
	}
	if interval <= 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		if err := f.Alive(ctx); err == nil {
			f.notify(sd.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			f.often.Error(f.log, "", "not alive, the watchdog of systemd is not fed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// notify tells systemd something, if systemd is there.
func (f *Frame) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		f.log.Warn("notify systemd", "state", state, "err", err)
	}
}
