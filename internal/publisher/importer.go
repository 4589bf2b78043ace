package publisher

import (
	"context"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/fidelity"
	"github.com/understudy-mx/understudy/policy/handwritten"
)

// Importer reads the configuration by which a primary decides. It may keep state
// that saves work the next time.
type Importer interface {
	// Name is the source's name for operators.
	Name() string
	// Import reads everything anew. ask are recipients, from anywhere, to ask the
	// primary about where it can't list them. Files is set on an error, too.
	Import(ctx context.Context, ask []string) (Imported, error)
	// Changed checks cheaply whether a source that announces no changes has
	// changed since the last Import. It may miss a change.
	Changed(ctx context.Context) bool
}

// Imported is an Importer's result.
type Imported struct {
	Snapshot *policy.Snapshot
	Report   *fidelity.Report // nil: the policy is the primary's own, there is nothing to replicate
	Choosing string           // the keys by which to choose what the Report offers
	Files    []string         // whose change calls for another reading
	Polled   bool             // something announces no change
}

// importers make the importer of each kind of policy that a configuration can
// name; keep says that it may write into the state directory.
var importers = map[string]func(cfg *config.Config, keep bool) (Importer, error){
	"file":    func(cfg *config.Config, _ bool) (Importer, error) { return &fileImporter{path: cfg.Policy.File}, nil },
	"postfix": newPostfix,
	"exim":    newExim,
}

// fileImporter reads a policy file.
type fileImporter struct {
	path string
	last *policy.Snapshot // shares memory with the next
}

func (*fileImporter) Name() string { return "policy" }

func (*fileImporter) Changed(context.Context) bool { return false }

func (i *fileImporter) Import(context.Context, []string) (r Imported, err error) {
	if r.Snapshot, r.Files, err = handwritten.Load(i.path, i.last); err == nil {
		i.last = r.Snapshot
	}
	return r, err
}

// compile makes a policy of an import, without the primary's own addresses, such
// as [192.0.2.1], among its domains. Mail for them goes to that machine; no MX
// leads it to a secondary, which names by domain what its primary may fill.
func compile(spec *policy.Spec) (*policy.Snapshot, error) {
	literal := func(d string) bool { return strings.HasPrefix(d, "[") }
	c := &spec.Addresses.Local
	c.Domains, c.Match = slices.DeleteFunc(c.Domains, literal), slices.DeleteFunc(c.Match, literal)
	return policy.Compile(spec)
}
