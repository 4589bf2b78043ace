package operator

import (
	"context"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/policy/greylist"
)

// remembered is a line of the greylist.
type remembered struct {
	greylist.Entry
	ending
}

// Greylist calls fn for each client and triplet that greylisting remembers.
func (d Daemon) Greylist(ctx context.Context, fn func(greylist.Entry) error) error {
	return greylisted(ctx, d.Client, fn)
}

// Greylist calls fn for each client and triplet that the secondaries have let in.
func (p Publisher) Greylist(ctx context.Context, fn func(greylist.Entry) error) error {
	return greylisted(ctx, p.Client, fn)
}

func greylisted(ctx context.Context, c *control.Client, fn func(greylist.Entry) error) error {
	list, err := c.Stream(ctx, "GET", "/v1/greylist")
	if err != nil {
		return err
	}
	return readList(list, func(r remembered) error { return fn(r.Entry) })
}
