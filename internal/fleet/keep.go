package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/understudy-mx/understudy/internal/service"
)

// maxKept bounds the file of the living, in octets.
const maxKept = 1 << 20

// recall takes the members of an earlier run for living until the database says
// otherwise: one that starts while that is away mustn't take the whole of a limit.
func (f *Fleet) recall() {
	names, err := readNames(f.o.File)
	if err != nil {
		f.o.Log.Warn("how many members there were isn't known; until the database is heard of, limits are taken whole", "err", err)
	}
	f.kept = names
	for _, name := range names {
		f.last = append(f.last, Member{Name: name, Seen: -1, Alive: true})
	}
}

func readNames(file string) (names []string, err error) {
	if file == "" {
		return nil, nil
	}
	r, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := json.NewDecoder(io.LimitReader(r, maxKept)).Decode(&names); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// keep writes the living down when they have changed.
func (f *Fleet) keep() {
	f.mu.Lock()
	names := []string{}
	for _, m := range f.last {
		if m.Alive || m.Name == f.o.Self {
			names = append(names, m.Name)
		}
	}
	heard := f.err == nil && f.o.File != "" && !slices.Equal(names, f.kept)
	f.mu.Unlock()
	if !heard {
		return
	}
	b, err := json.Marshal(names)
	if err == nil {
		err = service.ReplaceFile(f.o.File, b)
	}
	if err != nil {
		f.o.Log.Warn("the number of members isn't kept for the next start", "err", err)
		return
	}
	f.kept = names // Beat's alone
}
