package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/understudy-mx/understudy/internal/letter"
	"github.com/understudy-mx/understudy/internal/operator"
	"github.com/understudy-mx/understudy/queue"
)

type queueReadCmd struct {
	IDs []string `arg:"" optional:"" name:"id" help:"Messages; without any, those that the flags choose."`
	daemonFlag
	filterFlags
}

func (queueReadCmd) Help() string {
	return `Shows waiting mail during an outage as text that is safe for a terminal or a pager: the main header fields and the text parts, decoded; attachments and HTML by name and size. Control characters, escape sequences and what turns the direction of writing are replaced. The queue stays as it is.

The daemon's log notes each message that is read, and by which user.

Examples:

    understudy queue read --to alice@example.org | less
    understudy queue read 1m8kyaqhnnqbxc1x`
}

func (c *queueReadCmd) Run(ctx context.Context, out io.Writer) error {
	if err := c.check(); err != nil {
		return err
	}
	if len(c.IDs) == 0 && c.filterFlags == (filterFlags{}) {
		return mistakes{errors.New("name messages, or choose some: understudy queue read --to alice@example.org")}
	}
	return c.ask(func(d operator.Daemon) error {
		ids := c.IDs
		if len(ids) == 0 {
			if err := d.Messages(ctx, func(i queue.Info) error {
				if c.match(i) {
					ids = append(ids, i.ID)
				}
				return nil
			}); err != nil {
				return err
			}
		}
		if len(ids) == 0 {
			_, err := fmt.Fprintln(out, c.none())
			return err
		}
		for _, id := range ids {
			if err := readMessage(ctx, d, id, out); err != nil {
				return err
			}
		}
		return nil
	})
}

func readMessage(ctx context.Context, d operator.Daemon, id string, out io.Writer) error {
	body, err := d.Body(ctx, id)
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := fmt.Fprintf(out, "======== %s\n", printable(id)); err != nil {
		return err
	}
	return letter.Write(out, body)
}
