package policysync

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func addVectors(f *testing.F) {
	files, err := filepath.Glob(vectors + "/chunks/*")
	if err != nil || len(files) == 0 {
		f.Fatalf("no vectors: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// FuzzHead: what decodes encodes to the same octets.
func FuzzHead(f *testing.F) {
	h := testHead(time.Unix(1_800_000_000, 0))
	raw := h.sign(testKey('k'))
	f.Add(raw[:len(raw)-64])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHead(b)
		if err != nil {
			return
		}
		if raw := h.sign(testKey('k')); !bytes.Equal(raw[:len(raw)-64], b) {
			t.Errorf("%x became %x", b, raw)
		}
	})
}

// FuzzIndex: what decodes encodes to the same octets, and stays in bounds.
func FuzzIndex(f *testing.F) {
	addVectors(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLayout(b)
		if err != nil {
			return
		}
		var again []byte
		l.encode(func(c []byte) {
			if len(c) > maxIndexChunk {
				t.Errorf("an index chunk of %d octets", len(c))
			}
			again = append(again, c...)
		})
		if !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// FuzzChunk reads octets as a chunk's records, and as a frame.
func FuzzChunk(f *testing.F) {
	addVectors(f)
	c, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	defer c.close()
	f.Add(c.pack([]byte("0123")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := c.unpack(b, 4); err == nil && len(out) != 4 {
			t.Errorf("unpacked %d octets", len(out))
		}
		var again []byte
		for rest := b; len(rest) > 0; {
			key, value, next, err := nextRecord(rest)
			if err != nil {
				return
			}
			if again, err = appendRecord(again, key, value); err != nil {
				t.Fatal(err)
			}
			rest = next
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

// FuzzToken: what parses prints the same.
func FuzzToken(f *testing.F) {
	f.Add((&token{address: "h:1"}).String())
	f.Fuzz(func(t *testing.T, s string) {
		if tok, err := parseToken(s); err == nil && tok.String() != string(bytes.TrimSpace([]byte(s))) {
			t.Errorf("%q became %q", s, tok)
		}
	})
}
