package policysync

import (
	"fmt"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// build makes the content that a head and its layout describe. Chunks that old
// (nil: none) holds are taken from its tables, whose memory is then shared; the
// others from load, which returns them verified.
func build(h *Head, l layout, old *content, load func(ref) ([]byte, error)) (*content, error) {
	if records, octets, chunks := l.totals(); records != h.Records || octets != h.Octets || chunks != h.Chunks {
		return nil, alarm(AlarmContent, "the index has %d records in %d chunks of %d octets, the head promised %d in %d of %d",
			records, chunks, octets, h.Records, h.Chunks, h.Octets)
	}
	c := &content{layout: l, secret: h.secret}
	for i := range l {
		var err error
		if i == 0 {
			c.spec, err = buildSettings(&l[i], load)
		} else {
			err = c.buildTable(&l[i], old, load)
		}
		if err != nil {
			return nil, err
		}
	}
	c.count(old)
	if sum := c.perDomain(); c.recipients != h.Recipients || len(c.domains) != int(h.Domains) || sum != h.PerDomain {
		return nil, alarm(AlarmContent, "there are %d recipients in %d domains, the head promised %d in %d, or their sums differ",
			c.recipients, len(c.domains), h.Recipients, h.Domains)
	}
	return c, nil
}

func buildSettings(s *section, load func(ref) ([]byte, error)) (*policy.Spec, error) {
	var text []byte
	for _, r := range s.chunks {
		err := eachRecord(r, load, func(key, value []byte) error {
			if text = append(text, value...); len(key) > 0 || len(text) > maxSettings {
				return fmt.Errorf("a record of the settings has a key, or they are longer than %d octets", maxSettings)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	spec, err := parseSettings(text)
	if err != nil {
		return nil, &AlarmError{AlarmPolicy, err}
	}
	return spec, nil
}

// eachRecord calls fn with the records of a chunk.
func eachRecord(r ref, load func(ref) ([]byte, error), fn func(key, value []byte) error) error {
	b, err := load(r)
	if err != nil {
		return err
	}
	n := uint32(0)
	for ; len(b) > 0; n++ {
		var key, value []byte
		if key, value, b, err = nextRecord(b); err == nil {
			err = fn(key, value)
		}
		if err != nil {
			return alarm(AlarmContent, "chunk %x: %w", r.hash[:8], err)
		}
	}
	if n != r.records {
		return alarm(AlarmContent, "chunk %x has %d records, the index promised %d", r.hash[:8], n, r.records)
	}
	return nil
}

func (c *content) buildTable(s *section, old *content, load func(ref) ([]byte, error)) error {
	b, err := table.NewBuilder(kindNames[s.kind], c.secret)
	if err != nil {
		return alarm(AlarmContent, "table %s: %w", s.name, err)
	}
	was, starts := old.known(s, c.secret)
	for _, r := range s.chunks {
		if from, ok := starts[r.hash]; ok {
			err = b.AddRange(was, from, from+int(r.records))
		} else {
			err = eachRecord(r, load, b.Add)
			b.Cut()
		}
		if err != nil {
			return alarm(alarmOf(err, AlarmContent), "table %s: %w", s.name, err)
		}
	}
	t, err := b.Table()
	if err != nil {
		return alarm(AlarmContent, "table %s: %w", s.name, err)
	}
	if c.spec.Tables == nil {
		c.spec.Tables = map[string]*table.Table{}
	}
	c.spec.Tables[s.name] = t
	return nil
}

// known says where in a table of c each chunk of a section of the same name
// begins.
func (c *content) known(s *section, secret *table.Secret) (*table.Table, map[hash]int) {
	if c == nil || !sameSecret(c.secret, secret) {
		return nil, nil
	}
	o := c.layout.section(s.name)
	if o == nil || o.kind != s.kind {
		return nil, nil
	}
	starts, n := make(map[hash]int, len(o.chunks)), 0
	for _, r := range o.chunks {
		starts[r.hash] = n
		n += int(r.records)
	}
	return c.spec.Tables[s.name], starts
}
