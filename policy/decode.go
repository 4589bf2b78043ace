package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// errUnusual says that an encoding isn't the canonical one, or none at all.
var errUnusual = errors.New("not a canonical encoding")

// decodeFrom reads a canonical encoding without holding it in memory, where a
// million recipients would be ten times the policy. Any other encoding, and one
// with a mistake, whole returns to be read by decode: it accepts the former and
// tells the place of the latter.
func decodeFrom(name string, r io.Reader, whole func() ([]byte, error), before *Snapshot) (*Snapshot, error) {
	d := specReader{d: json.NewDecoder(r)}
	if before != nil {
		d.before = before.spec.Tables
	}
	spec, err := d.spec()
	if err != nil {
		b, err := whole()
		if err != nil {
			return nil, err
		}
		return decode(name, b)
	}
	s, err := Compile(spec)
	if err != nil {
		return nil, prefixErrors(name+": ", err)
	}
	return s, nil
}

// specReader reads a Spec's encoding token by token.
type specReader struct {
	d      *json.Decoder
	before map[string]*Table // tables to share memory with
}

func (r *specReader) spec() (*Spec, error) {
	var rest rawObject
	var tables map[string]*Table
	err := r.object(func(key string) error {
		if key != "tables" {
			return rest.add(key, r.d)
		}
		tables = map[string]*Table{}
		return r.object(func(name string) (err error) {
			tables[name], err = r.table(name)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	if _, err := r.d.Token(); err != io.EOF {
		return nil, errUnusual
	}
	spec := new(Spec)
	if err := strictJSON(rest.bytes(), spec); err != nil {
		return nil, err
	}
	if spec.Version != SpecVersion || spec.Tables != nil {
		return nil, errUnusual
	}
	spec.Tables = tables
	return spec, nil
}

// table reads one. Its type stands first.
func (r *specReader) table(name string) (*Table, error) {
	var rest rawObject
	t, keyed := &Table{}, false
	err := r.object(func(key string) (err error) {
		switch {
		case key == "type" && rest.n == 0:
			t.typ, err = r.text()
			name, _ := json.Marshal(t.typ) // a string always can be
			return errors.Join(err, rest.put(key, name))
		case rest.n == 1 && (key == "keys" && t.typ == typeSet || key == "entries" && t.typ == typeHash):
			keyed = true
			t.keys, err = r.entries(t.typ, r.before[name])
			return err
		}
		return rest.add(key, r.d)
	})
	switch {
	case err != nil:
		return nil, err
	case keyed && rest.n > 1:
		return nil, errUnusual
	case keyed:
		return t, nil
	}
	return t, t.UnmarshalJSON(rest.bytes())
}

// entries reads the keys of a set or the entries of a hash. They ascend, but for
// some keys of a set that somebody added by hand.
func (r *specReader) entries(typ string, before *Table) (segments, error) {
	b := segmentsBuilder{valued: typ == typeHash}
	if before != nil && before.Type() == typ && !b.valued {
		b.like = &before.keys
	}
	var k []byte
	var late []string
	add := func(key, value string) error {
		k = append(k[:0], fold(key)...)
		if last := b.last(); !b.valued && last != nil && bytes.Compare(k, last) < 0 {
			late = append(late, string(k))
			return nil
		}
		if err := b.add(k, []byte(value)); err != nil {
			return err
		}
		b.cutBehind(k)
		return nil
	}
	var err error
	if b.valued {
		err = r.object(func(key string) error {
			value, err := r.text()
			return errors.Join(err, add(key, value))
		})
	} else {
		err = r.each('[', ']', func() error {
			key, err := r.text()
			return errors.Join(err, add(key, ""))
		})
	}
	if err != nil {
		return segments{}, err
	}
	b.cut()
	x, err := newSegments(b.segs)
	if err != nil || len(late) == 0 {
		return x, err
	}
	return withLate(x, late)
}

// withLate adds keys that x must not have.
func withLate(x segments, late []string) (segments, error) {
	n := x.len() + len(late)
	more, err := sorted(late, nil)
	if err != nil {
		return x, err
	}
	x, err = merge([]*piece{{run: x}, {run: more}})
	if err == nil && x.len() != n {
		err = errUnusual // one of them twice
	}
	return x, err
}

// object calls field behind each key.
func (r *specReader) object(field func(key string) error) error {
	return r.each('{', '}', func() error {
		key, err := r.text()
		if err != nil {
			return err
		}
		return field(key)
	})
}

func (r *specReader) each(open, end json.Delim, fn func() error) error {
	if t, err := r.d.Token(); t != open || err != nil {
		return errUnusual
	}
	for r.d.More() {
		if err := fn(); err != nil {
			return err
		}
	}
	if t, err := r.d.Token(); t != end || err != nil {
		return errUnusual
	}
	return nil
}

func (r *specReader) text() (string, error) {
	t, err := r.d.Token()
	s, ok := t.(string)
	if err != nil || !ok {
		return "", errUnusual
	}
	return s, nil
}

// rawObject gathers fields of an object.
type rawObject struct {
	buf bytes.Buffer
	n   int
}

// add takes the field whose value d has next.
func (o *rawObject) add(key string, d *json.Decoder) error {
	var value json.RawMessage
	if err := d.Decode(&value); err != nil {
		return err
	}
	return o.put(key, value)
}

func (o *rawObject) put(key string, value []byte) error {
	name, err := json.Marshal(key)
	o.buf.WriteByte("{,"[min(o.n, 1)])
	o.buf.Write(name)
	o.buf.WriteByte(':')
	o.buf.Write(value)
	o.n++
	return err
}

func (o *rawObject) bytes() []byte {
	if o.n == 0 {
		return []byte("{}")
	}
	return append(o.buf.Bytes(), '}')
}
