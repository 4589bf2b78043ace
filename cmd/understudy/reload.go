package main

import (
	"context"
	"log/slog"
	"reflect"
	"strings"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/internal/pushed"
)

// reloading adds to a reload of the files that cfg names a look into cfg's own file:
// what may be pushed takes effect at once, and other changes are said to wait for a
// restart. A configuration with a mistake changes nothing.
func reloading(cfg *config.Config, push *pushDesk, log *slog.Logger, files func(context.Context)) func(context.Context) {
	return func(ctx context.Context) {
		files(ctx)
		if cfg.File == "" { // the demo
			return
		}
		next, err := config.Load(cfg.File)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				log.Error("configuration refused, the last good one stays in force", "err", line)
			}
			return
		}
		now := *cfg
		if push != nil && next.Push.Listen != "" && next.IsPublisher == cfg.IsPublisher {
			if err := push.store.Limit(pushLimits(next)); err != nil {
				log.Error("[push] stays as it was", "err", err)
				return
			}
			now.Push.Domains, now.Push.StaleAfter, now.Push.MaxRecipients = next.Push.Domains, next.Push.StaleAfter, next.Push.MaxRecipients
			if !reflect.DeepEqual(now.Push, cfg.Push) {
				log.Info("[push] changed", "domains", now.Push.Domains)
			}
		}
		if !reflect.DeepEqual(&now, next) {
			log.Warn("the configuration has changes that take effect at the next restart only", "file", cfg.File)
		}
		cfg = &now
	}
}

// pushLimits are what may be pushed.
func pushLimits(cfg *config.Config) pushed.Limits {
	return pushed.Limits{Domains: cfg.Push.Domains, MaxEntries: cfg.Push.MaxRecipients, StaleAfter: cfg.Push.StaleAfter}
}
