package service

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// TestFrame: when a part ends, the others do, those in front first, and the error
// says which it was. To be told to end is no error.
func TestFrame(t *testing.T) {
	for _, tt := range []struct {
		name string
		part func(ctx context.Context, stop func()) error
		want string
	}{
		{"told", func(ctx context.Context, stop func()) error { stop(); <-ctx.Done(); return nil }, "<nil>"},
		{"fails", func(context.Context, func()) error { return errors.New("no disk") }, "store: no disk"},
		{"ends", func(context.Context, func()) error { return nil }, "store: ended unasked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan string, 3)
			f := New(slog.New(slog.DiscardHandler))
			f.Stopping = func() { ended <- "stopping" }
			f.Back("relay", func(ctx context.Context) error { <-ctx.Done(); ended <- "back"; return nil })
			f.Back("store", func(ctx context.Context) error { return tt.part(ctx, stop) })
			f.Front("door", func(ctx context.Context) error { <-ctx.Done(); ended <- "front"; return nil })
			err := f.Run(ctx)
			close(ended)
			var order []string
			for s := range ended {
				order = append(order, s)
			}
			if got := strings.Join(order, " "); got != "stopping front back" && got != "front stopping back" {
				t.Errorf("ended in the order %s", got)
			}
			if err == nil && tt.want != "<nil>" || err != nil && err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}
