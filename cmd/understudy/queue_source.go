package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path/filepath"
	"strconv"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/queue"
	"github.com/understudy-mx/understudy/queue/leveldb"
	"github.com/understudy-mx/understudy/queue/offline"
)

// mailSource is where commands read mail that only look: the running daemon,
// or the files when none runs.
type mailSource interface {
	messages(ctx context.Context, fn func(queue.Info) error) error
	body(ctx context.Context, id string) (io.ReadCloser, error)
	quarantined(ctx context.Context, fn func(queue.Quarantine) error) error
	// quarantinePart is "record" or "body".
	quarantinePart(ctx context.Context, seq uint64, part string) (io.ReadCloser, error)
	close()
}

// source opens the queue's files, or finds the daemon that has them.
func (f daemonFlag) source() (mailSource, error) {
	v, err := f.view()
	if errors.Is(err, queue.ErrLocked) {
		c, err := f.dial()
		if err != nil {
			return nil, err
		}
		return daemonSource{c}, nil
	}
	if err != nil {
		return nil, err
	}
	return viewSource{v}, nil
}

// queueDir is where the queue of a state directory is.
func queueDir(cfg *config.Config) leveldb.Dir {
	return leveldb.Dir{Path: filepath.Join(cfg.StateDir, "queue")}
}

// view opens the queue's files for reading; no daemon may have them.
func (f daemonFlag) view() (*offline.View, error) {
	cfg, err := loadConfig(f.Conf)
	if err != nil {
		return nil, err
	}
	v, err := offline.OpenView(queueDir(cfg), routeOf(cfg.Routes))
	switch {
	case errors.Is(err, queue.ErrLocked):
		return nil, err
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no queue in state directory %s: is it the daemon's? Name its configuration with -c", cfg.StateDir)
	case err != nil:
		return nil, stateError(cfg.StateDir, err)
	}
	return v, nil
}

type daemonSource struct{ c *control.Client }

func (s daemonSource) close() { s.c.Close() }

func (s daemonSource) messages(ctx context.Context, fn func(queue.Info) error) error {
	body, err := s.c.Stream(ctx, "GET", "/v1/queue")
	if err != nil {
		return err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var item listItem
		if err := d.Decode(&item); err != nil {
			return fmt.Errorf("read the daemon's list: cut short: %w", err)
		}
		if item.Error != "" {
			return errors.New(item.Error)
		}
		if item.End {
			return nil
		}
		if err := fn(item.Info); err != nil {
			return err
		}
	}
}

func (s daemonSource) body(ctx context.Context, id string) (io.ReadCloser, error) {
	return s.c.Stream(ctx, "GET", "/v1/queue/"+url.PathEscape(id)+"/body")
}

func (s daemonSource) quarantined(ctx context.Context, fn func(queue.Quarantine) error) error {
	body, err := s.c.Stream(ctx, "GET", "/v1/quarantine")
	if err != nil {
		return err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	for {
		var item quarantineItem
		if err := d.Decode(&item); err != nil {
			return fmt.Errorf("read the daemon's list: cut short: %w", err)
		}
		switch {
		case item.Error != "":
			return errors.New(item.Error)
		case item.End:
			return nil
		}
		if err := fn(item.Quarantine); err != nil {
			return err
		}
	}
}

func (s daemonSource) quarantinePart(ctx context.Context, seq uint64, part string) (io.ReadCloser, error) {
	return s.c.Stream(ctx, "GET", "/v1/quarantine/"+strconv.FormatUint(seq, 10)+"/"+part)
}

type viewSource struct{ v *offline.View }

func (s viewSource) close() { s.v.Close() }

func (s viewSource) messages(ctx context.Context, fn func(queue.Info) error) error {
	return s.v.Walk(ctx, fn)
}

func (s viewSource) body(_ context.Context, id string) (io.ReadCloser, error) { return s.v.Body(id) }

func (s viewSource) quarantined(ctx context.Context, fn func(queue.Quarantine) error) error {
	return s.v.WalkQuarantine(ctx, fn)
}

func (s viewSource) quarantinePart(_ context.Context, seq uint64, part string) (io.ReadCloser, error) {
	return quarantinePart(s.v, seq, part)
}
