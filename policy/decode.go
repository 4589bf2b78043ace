package policy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"

	"github.com/understudy-mx/understudy/policy/table"
)

// errUnusual says that an encoding isn't the canonical one, or none at all.
var errUnusual = errors.New("not a canonical encoding")

// Decode reads a canonical encoding, called name in errors, without holding it in
// memory: for a million recipients it is ten times the size of the policy. Any
// other encoding is read again as a whole, which accepts it or finds the place of
// its mistake. The Snapshot shares memory with before, which may be nil, where both
// list the same recipients.
func Decode(name string, r io.ReadSeeker, before *Snapshot) (*Snapshot, error) {
	d := specReader{d: json.NewDecoder(bufio.NewReader(r))}
	if before != nil {
		d.before = before.spec.Tables
	}
	spec, err := d.spec()
	if err != nil {
		if _, err := r.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
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
	before map[string]*table.Table // tables to share memory with
}

func (r *specReader) spec() (*Spec, error) {
	var rest rawObject
	var tables map[string]*table.Table
	err := r.object(func(key string) error {
		if key != "tables" {
			return rest.add(key, r.d)
		}
		tables = map[string]*table.Table{}
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
func (r *specReader) table(name string) (t *table.Table, err error) {
	var rest rawObject
	typ := ""
	err = r.object(func(key string) (err error) {
		switch {
		case key == "type" && rest.n == 0:
			typ, err = r.text()
			name, _ := json.Marshal(typ) // a string always can be
			return errors.Join(err, rest.put(key, name))
		case rest.n == 1 && (key == "keys" && typ == table.TypeSet || key == "entries" && typ == table.TypeHash):
			t, err = r.entries(typ, r.before[name])
			return err
		}
		return rest.add(key, r.d)
	})
	switch {
	case err != nil:
		return nil, err
	case t != nil && rest.n > 1:
		return nil, errUnusual
	case t != nil:
		return t, nil
	}
	t = new(table.Table)
	return t, t.UnmarshalJSON(rest.bytes())
}

// entries reads the keys of a set or the entries of a hash. They ascend, but for
// some keys of a set that somebody added by hand.
func (r *specReader) entries(typ string, before *table.Table) (*table.Table, error) {
	b, err := table.NewBuilder(typ, nil)
	if err != nil {
		return nil, err
	}
	b.Like(before)
	var k []byte
	var late *table.Run
	n := 0
	add := func(key, value string) error {
		k = append(k[:0], table.Fold(key)...)
		n++
		err := b.Add(k, []byte(value))
		if typ == table.TypeSet && errors.Is(err, table.ErrOrder) {
			if late == nil {
				late = b.Run()
			}
			late.Add(key)
			return nil
		}
		return err
	}
	if typ == table.TypeHash {
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
		return nil, err
	}
	t, err := b.Table()
	if err == nil && t.Len() != n {
		err = errUnusual // a key twice
	}
	return t, err
}

// object calls field after each key.
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

// strictJSON refuses fields that v doesn't know.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
