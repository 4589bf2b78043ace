package policysync

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// content is a policy with the layout that it travels in.
type content struct {
	spec       *policy.Spec
	layout     layout
	secret     *table.Secret // what keys are hashed under, nil: they are plain
	recipients uint64
	domains    map[string]*uint64 // recipients counted by domain, "" for those without; by its tag where keys are hashed
}

// settingsPiece is the longest piece that one record of the settings carries.
const settingsPiece = 4096

// maxSettings bounds the settings in octets.
const maxSettings = 16 << 20

// settings encodes everything but the tables: JSON, a line a record, so that a
// change moves few cuts.
func settings(spec *policy.Spec) ([][]byte, error) {
	bare := *spec
	bare.Tables = nil
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(&bare); err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	if b.Len() > maxSettings {
		return nil, fmt.Errorf("the settings take %d octets; at most %d can be carried", b.Len(), maxSettings)
	}
	return cutSettings(b.Bytes()), nil
}

func cutSettings(text []byte) (pieces [][]byte) {
	for line := range bytes.Lines(text) {
		for piece := range slices.Chunk(line, settingsPiece) {
			pieces = append(pieces, piece)
		}
	}
	return pieces
}

// parseSettings reads what settings wrote, strictly.
func parseSettings(b []byte) (*policy.Spec, error) {
	spec := new(policy.Spec)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(spec); err != nil {
		return nil, fmt.Errorf("settings: %w (is the primary's program newer?)", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("settings: trailing data")
	}
	if spec.Tables != nil {
		return nil, errors.New("settings: unexpected tables")
	}
	return spec, nil
}

// recipientTables names the tables whose keys say which recipients exist.
func recipientTables(spec *policy.Spec) []string {
	a := &spec.Addresses
	names := slices.Concat(a.VirtualAlias, a.Local.Recipients, a.VirtualAliases.Recipients, a.VirtualMailbox.Recipients, a.Relay.Recipients)
	slices.Sort(names)
	return slices.Compact(names)
}

// acceptedDomains lists the domains that the policy accepts mail for.
func acceptedDomains(spec *policy.Spec) []string {
	a := &spec.Addresses
	all := slices.Concat(a.Local.Domains, a.VirtualAliases.Domains, a.VirtualMailbox.Domains, a.Relay.Domains)
	slices.Sort(all)
	return slices.Compact(all)
}

// domainOf is the domain of a recipient table's key: "" for a bare local-part,
// the domain's tag for a digest.
func domainOf(t *table.Table, key []byte) []byte {
	if t.Secret() != nil {
		return key[:table.TagSize]
	}
	return table.DomainOf(key)
}

// diffTables calls removed and added with the keys that only one of two tables
// has. Either table may be nil.
func diffTables(old, now *table.Table, removed, added func(t *table.Table, key []byte)) {
	r, a := func(key []byte) { removed(old, key) }, func(key []byte) { added(now, key) }
	if removed == nil {
		r = nil
	}
	if added == nil {
		a = nil
	}
	if old != nil && now != nil && !sameSecret(old.Secret(), now.Secret()) { // no key of one means anything in the other
		table.Diff(old, nil, r, nil)
		table.Diff(nil, now, nil, a)
		return
	}
	table.Diff(old, now, r, a)
}

func sameSecret(a, b *table.Secret) bool { return a == b || a != nil && b != nil && *a == *b }

// count fills in the numbers that a head commits to. What old (nil: none)
// shares with c isn't counted again.
func (c *content) count(old *content) {
	now := recipientTables(c.spec)
	var before []string
	c.recipients, c.domains = 0, map[string]*uint64{}
	if old != nil && old.spec != nil {
		before = recipientTables(old.spec)
		for d, n := range old.domains {
			v := *n
			c.domains[d] = &v
		}
	}
	add := func(by uint64) func(*table.Table, []byte) {
		return func(t *table.Table, key []byte) {
			d := domainOf(t, key)
			n := c.domains[string(d)]
			if n == nil {
				n = new(uint64)
				c.domains[string(d)] = n
			}
			*n += by
		}
	}
	names := slices.Concat(before, now)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		var o, t *table.Table
		if _, was := slices.BinarySearch(before, name); was {
			o = old.spec.Tables[name]
		}
		if _, is := slices.BinarySearch(now, name); is && c.spec.Tables[name] != nil {
			t = c.spec.Tables[name]
			c.recipients += uint64(t.Len())
		}
		diffTables(o, t, add(^uint64(0)), add(1))
	}
	maps.DeleteFunc(c.domains, func(_ string, n *uint64) bool { return *n == 0 })
}

// perDomain hashes the counts: for each domain, ascending, its length, its name
// and its count.
func (c *content) perDomain() hash {
	h := sha256.New()
	var b []byte
	for _, d := range slices.Sorted(maps.Keys(c.domains)) {
		b = binary.BigEndian.AppendUint16(b[:0], uint16(len(d)))
		b = binary.BigEndian.AppendUint64(append(b, d...), *c.domains[d])
		h.Write(b)
	}
	return hash(h.Sum(nil))
}

// source is a publisher's content: it can make any of its chunks again.
type source struct {
	content
	pieces [][]byte // the settings
	places map[hash]place
	index  map[hash][]byte // index chunks
	order  []ref           // and their order
}

// place says which records make a chunk.
type place struct {
	section  int
	from, to int
}

// newSource lays a policy out. It keeps spec, which must not change, and no
// copy of the tables. What it shares with old (nil: none) isn't counted again.
func newSource(spec *policy.Spec, old *source) (*source, error) {
	pieces, err := settings(spec)
	if err != nil {
		return nil, err
	}
	return layOut(spec, pieces, nil, old)
}

func layOut(spec *policy.Spec, pieces [][]byte, secret *table.Secret, old *source) (*source, error) {
	s := &source{content: content{spec: spec, secret: secret}, pieces: pieces, places: map[hash]place{}, index: map[hash][]byte{}}
	if err := s.addSection(kindSettings, ""); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Tables)) {
		kind := slices.Index(kindNames[:], spec.Tables[name].Type())
		if kind <= kindSettings || len(name) > maxName || name == "" {
			return nil, fmt.Errorf("table %.300q can't be carried: its type is unknown, or its name longer than %d octets", name, maxName)
		}
		if err := s.addSection(byte(kind), name); err != nil {
			return nil, err
		}
	}
	s.layout.encode(func(b []byte) {
		h := sha256.Sum256(b)
		s.index[h] = bytes.Clone(b)
		s.order = append(s.order, ref{hash: h, size: uint32(len(b))})
	})
	if _, _, chunks := s.layout.totals(); len(s.order) > maxIndexChunks || chunks > maxChunks || len(s.layout) > maxSections {
		return nil, fmt.Errorf("the policy takes %d chunks, more than can be carried", chunks)
	}
	if old == nil {
		old = new(source)
	}
	s.count(&old.content)
	return s, nil
}

func (s *source) addSection(kind byte, name string) error {
	sec := section{kind: kind, name: name}
	no, from := len(s.layout), 0
	n := len(s.pieces)
	if kind != kindSettings {
		n = s.spec.Tables[name].Len()
	}
	c := cutter{mean: meanChunk, max: maxChunk, emit: func(b []byte, records int) {
		r := ref{hash: sha256.Sum256(b), size: uint32(len(b)), records: uint32(records)}
		sec.chunks = append(sec.chunks, r)
		s.places[r.hash] = place{no, from, from + records}
		from += records
	}}
	s.layout = append(s.layout, sec)
	var rec []byte
	for key, value := range s.entries(no, 0, n) {
		var err error
		if rec, err = appendRecord(rec[:0], key, []byte(value)); err != nil {
			return fmt.Errorf("table %s: %w", name, err)
		}
		c.add(rec)
	}
	c.flush()
	sec.records = uint64(n)
	s.layout[no] = sec
	return nil
}

// entries yields the records from to to (exclusive) of a section.
func (s *source) entries(section, from, to int) iter.Seq2[[]byte, string] {
	if section > 0 {
		return s.spec.Tables[s.layout[section].name].Entries(from, to)
	}
	return func(yield func([]byte, string) bool) {
		for i := from; i < to && yield(nil, string(s.pieces[i])); i++ {
		}
	}
}

// chunk makes the chunk of a name, nil when the content has none.
func (s *source) chunk(h hash) []byte {
	if b, ok := s.index[h]; ok {
		return b
	}
	p := s.places[h] // of an unknown name a place without entries
	var b []byte
	for key, value := range s.entries(p.section, p.from, p.to) {
		b, _ = appendRecord(b, key, []byte(value)) // it went through once
	}
	return b
}

// fill sets the fields of a head that describe the content.
func (s *source) fill(h *Head) {
	h.Records, h.Octets, h.Chunks = s.layout.totals()
	h.Recipients, h.Domains, h.PerDomain = s.recipients, uint32(len(s.domains)), s.perDomain()
	h.index = s.order
}
