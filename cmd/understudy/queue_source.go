package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/offline"
)

// mailSource is where commands read mail that only look: the running daemon,
// or the files when none runs.
type mailSource interface {
	Messages(ctx context.Context, fn func(queue.Info) error) error
	Count(ctx context.Context) int // of messages, 0 if it can't be known
	Body(ctx context.Context, id string) (io.ReadCloser, error)
	Quarantined(ctx context.Context, fn func(queue.Quarantine) error) error
	// QuarantinePart is of "record" or "body".
	QuarantinePart(ctx context.Context, seq uint64, part string) (io.ReadCloser, error)
	Close()
}

// source opens the queue's files, or finds the daemon that has them.
func (f daemonFlag) source() (mailSource, error) {
	v, err := f.view()
	if errors.Is(err, queue.ErrLocked) {
		d, err := f.dial()
		return daemonSource{d}, err
	}
	if err != nil {
		return nil, err
	}
	return viewSource{v}, nil
}

// view opens the queue's files for reading; no daemon may have them.
func (f daemonFlag) view() (*offline.View, error) {
	cfg, err := loadConfig(f.Conf)
	if err != nil {
		return nil, err
	}
	opener, err := queueStore(cfg, nil)
	if err != nil {
		return nil, err
	}
	v, err := offline.OpenView(opener, routeOf(cfg))
	switch {
	case errors.Is(err, queue.ErrLocked):
		return nil, err
	case errors.Is(err, fs.ErrNotExist) && cfg.Queue.Store == storePostgres:
		return nil, fmt.Errorf("no %w: has the daemon of this configuration run yet?", err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no queue in state directory %s: is it the daemon's? Name its configuration with -c", cfg.StateDir)
	case err != nil:
		return nil, storeError(cfg, err)
	}
	return v, nil
}

type daemonSource struct{ operator.Daemon }

func (s daemonSource) Count(ctx context.Context) int {
	now, err := s.Status(ctx)
	if err != nil {
		return 0 // who asks for the messages is told why
	}
	return now.Messages
}

type viewSource struct{ v *offline.View }

func (s viewSource) Close() { s.v.Close() }

func (s viewSource) Count(context.Context) int { return s.v.Count() }

func (s viewSource) Messages(ctx context.Context, fn func(queue.Info) error) error {
	return s.v.Walk(ctx, fn)
}

func (s viewSource) Body(_ context.Context, id string) (io.ReadCloser, error) { return s.v.Body(id) }

func (s viewSource) Quarantined(ctx context.Context, fn func(queue.Quarantine) error) error {
	return s.v.WalkQuarantine(ctx, fn)
}

func (s viewSource) QuarantinePart(_ context.Context, seq uint64, part string) (io.ReadCloser, error) {
	return operator.QuarantinePart(s.v, seq, part)
}
