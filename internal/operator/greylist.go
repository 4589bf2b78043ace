package operator

import (
	"context"

	"github.com/understudy-mx/understudy/policy/greylist"
)

// remembered is a line of the greylist.
type remembered struct {
	greylist.Entry
	ending
}

// Greylist calls fn for each client and triplet that greylisting remembers.
func (d Daemon) Greylist(ctx context.Context, fn func(greylist.Entry) error) error {
	list, err := d.Stream(ctx, "GET", "/v1/greylist")
	if err != nil {
		return err
	}
	return readList(list, func(r remembered) error { return fn(r.Entry) })
}
