package publisher

import (
	"context"
	"fmt"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/policy/exim"
	"github.com/understudy-mx/understudy/policy/fidelity"
)

// eximImporter reads a live Exim.
type eximImporter struct{ src exim.Source }

func newExim(cfg *config.Config, _ bool) (Importer, error) {
	return &eximImporter{EximOf(&cfg.Policy)}, nil
}

// EximOf is the Exim of a [policy].
func EximOf(c *config.Policy) exim.Source {
	src := exim.Source{Config: c.EximConfig, Choices: fidelity.ParseChoices(c.EximChoose), Rows: exim.Databases, Directory: exim.Directories}
	if c.Exim != "auto" {
		src.Program = c.Exim
	}
	return src
}

func (*eximImporter) Name() string { return "exim" }

// Changed leaves databases to the next poll's import.
func (i *eximImporter) Changed(context.Context) bool { return false }

func (i *eximImporter) Import(ctx context.Context, _ []string) (r Imported, err error) {
	if i.src.Config != "" {
		r.Files = []string{i.src.Config}
	}
	spec, report, err := exim.Import(ctx, i.src)
	if err != nil {
		return r, fmt.Errorf("import Exim: %w", err)
	}
	spec.NotReplicated = report.Lacking()
	r.Choosing = `exim_choose = ["ITEM=CHOICE", ...]`
	r.Report, r.Files, r.Polled = &report, append(r.Files, report.Files...), len(report.Polled) > 0
	r.Snapshot, err = compile(spec)
	return r, err
}
