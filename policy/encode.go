package policy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/understudy-mx/understudy/internal/locate"
)

// Encode returns the canonical encoding of the policy: JSON, indented so that
// a person can read it and diff shows one line an entry, with sorted keys.
// Equal policies have equal encodings.
func (s *Snapshot) Encode() []byte {
	b, err := marshalJSON(s.spec)
	if err != nil {
		panic("policy: encode snapshot: " + err.Error()) // a Spec holds nothing that JSON can't
	}
	var out bytes.Buffer
	out.Grow(len(b) + len(b)/2)
	if err := json.Indent(&out, b, "", " "); err != nil {
		panic("policy: indent snapshot: " + err.Error())
	}
	out.WriteByte('\n')
	return out.Bytes()
}

// sum is SHA-256 of the policy, table by table: the encoding of a million
// recipients at once would take several times the policy's memory.
func (s *Snapshot) sum() (sum [32]byte) {
	h := sha256.New()
	w := bufio.NewWriterSize(h, 32<<10) // neither of them fails
	field := func(size int) { w.Write(binary.AppendUvarint(w.AvailableBuffer(), uint64(size))) }
	put := func(v any) {
		b, err := marshalJSON(v)
		if err != nil {
			panic("policy: sum up snapshot: " + err.Error()) // a Spec holds nothing that JSON can't
		}
		field(len(b))
		w.Write(b)
	}
	spec := *s.spec
	spec.Tables = nil
	put(spec)
	for _, name := range slices.Sorted(maps.Keys(s.spec.Tables)) {
		t := s.spec.Tables[name]
		put([]any{name, t.Type(), t.Secret(), t.Len()})
		for key, value := range t.Entries(0, t.Len()) {
			field(len(key))
			w.Write(key)
			field(len(value))
			w.WriteString(value)
		}
	}
	w.Flush()
	h.Sum(sum[:0])
	return sum
}

// marshalJSON leaves "<>" and "&" as they are.
func marshalJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// decode reads a canonical encoding. name stands for it in errors.
func decode(name string, b []byte) (*Snapshot, error) {
	var head struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, jsonError(name, b, err)
	}
	switch {
	case head.Version == nil:
		return nil, fmt.Errorf("%s:1:1: version is missing; this is no policy snapshot", name)
	case *head.Version != SpecVersion:
		return nil, fmt.Errorf("%s:1:1: version %d is unknown; this program reads version %d", name, *head.Version, SpecVersion)
	}
	spec := new(Spec)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(spec); err != nil {
		return nil, jsonError(name, b, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		line, col := locate.Line(b, int(d.InputOffset()))
		return nil, fmt.Errorf("%s:%d:%d: something follows the snapshot; remove it", name, line, col)
	}
	s, err := Compile(spec)
	if err != nil {
		return nil, prefixErrors(name+": ", err)
	}
	return s, nil
}

// jsonError adds the place of the mistake, if the decoder has it.
func jsonError(name string, b []byte, err error) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		line, col := locate.Line(b, int(syntax.Offset))
		return fmt.Errorf("%s:%d:%d: not valid JSON: %w", name, line, col, err)
	case errors.As(err, &typ):
		line, col := locate.Line(b, int(typ.Offset))
		return fmt.Errorf("%s:%d:%d: %s: want %s, not %s", name, line, col, typ.Field, typ.Type, typ.Value)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// prefixErrors puts prefix before each of the errors that err joins.
func prefixErrors(prefix string, err error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return fmt.Errorf("%s%w", prefix, err)
	}
	var errs []error
	for _, e := range joined.Unwrap() {
		errs = append(errs, fmt.Errorf("%s%w", prefix, e))
	}
	return errors.Join(errs...)
}

// byName lists the codes under their names.
func (c *Codes) byName() map[string]int {
	b, err := json.Marshal(c)
	m := map[string]int{}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		panic("policy: list codes: " + err.Error())
	}
	return m
}
