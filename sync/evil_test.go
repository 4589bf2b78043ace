package policysync

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/policy"
)

// evil is a primary in wrong hands: it has the paired keys and answers as a
// test wants it to.
type evil struct {
	addr  string
	clock *clock
	epoch uint64
	codec *codec

	mu     sync.Mutex
	raw    []byte
	chunks map[hash][]byte
	answer http.HandlerFunc // before all else; it returns without an answer to let the honest one do
}

var evilStream = streamID{1, 2, 3}

func newEvil(t *testing.T) *evil {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &evil{addr: l.Addr().String(), clock: newClock()}
	if e.codec, err = newCodec(); err != nil {
		t.Fatal(err)
	}
	e.epoch = uint64(e.clock.now().Add(-time.Hour).Unix())
	srv := &http.Server{Handler: e, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP2(true)
	if srv.TLSConfig, err = tlsConfig(testKey('s'), func(Pin) error { return nil }); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(l, "", "") }() // ends with Close
	t.Cleanup(func() { srv.Close(); <-done })
	return e
}

// answered notes whether a handler answered.
type answered struct {
	http.ResponseWriter
	yes bool
}

func (a *answered) WriteHeader(c int) { a.yes = true; a.ResponseWriter.WriteHeader(c) }

func (a *answered) Write(b []byte) (int, error) { a.yes = true; return a.ResponseWriter.Write(b) }

func (e *evil) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	raw, chunks, answer := e.raw, e.chunks, e.answer
	e.mu.Unlock()
	a := &answered{ResponseWriter: w}
	if answer != nil {
		if answer(a, r); a.yes {
			return
		}
	}
	switch name, isChunk := strings.CutPrefix(r.URL.Path, "/v1/chunks/"); {
	case isChunk:
		var h hash
		_, _ = hex.Decode(h[:], []byte(name))
		w.Header().Set("Content-Encoding", "zstd")
		_, _ = w.Write(e.codec.pack(chunks[h]))
	case r.URL.Path == "/v1/head":
		_, _ = w.Write(raw)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// follower is paired with the evil primary and holds version 1.
func (e *evil) follower(t *testing.T, spec *policy.Spec) *Follower {
	t.Helper()
	dir := t.TempDir()
	if err := saveKey(osFS{}, path.Join(dir, clientKeyFile), testKey('c')); err != nil {
		t.Fatal(err)
	}
	p := &pairing{Address: e.addr, Name: "mx2", Stream: evilStream,
		ServerPins: []Pin{PinOf(publicOf(testKey('s')))}, PolicyKeys: []Pin{Pin(publicOf(testKey('p')))}}
	if err := p.save(osFS{}, dir); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFollower(FollowerOptions{Dir: dir, Domains: []string{"example.org", "example.com"}, Metrics: newMetrics(), now: e.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.http.close(); f.Close() })
	if spec != nil {
		e.offer(t, e.forge(t, spec, nil), e.head(1, hash{}), nil)
		poll(t, f)
	}
	return f
}

// head is an honest head without content.
func (e *evil) head(version uint64, prev hash) *Head {
	created := time.Unix(e.clock.now().Unix(), 0)
	return &Head{Stream: evilStream, Epoch: e.epoch, Version: version, Prev: prev, Created: created, Expires: created.Add(headLife),
		ServerPins: []Pin{PinOf(publicOf(testKey('s')))}, PolicyKeys: []Pin{Pin(publicOf(testKey('p')))}}
}

// forgery is content whose parts need not agree.
type forgery struct {
	src    *source
	layout layout
	chunks map[hash][]byte
	index  []byte // in place of the layout's
}

// forge lays spec out and lets a test change it; sums and totals follow the
// change, so that what catches it is not they.
func (e *evil) forge(t *testing.T, spec *policy.Spec, edit func(*forgery)) *forgery {
	t.Helper()
	f := forgeryOf(source1(t, spec))
	if edit != nil {
		edit(f)
	}
	return f
}

func forgeryOf(src *source) *forgery {
	f := &forgery{src: src, layout: src.layout, chunks: map[hash][]byte{}}
	for h := range src.places {
		f.chunks[h] = src.chunk(h)
	}
	return f
}

// add adds a chunk and names it.
func (f *forgery) add(b []byte, records int) ref {
	r := ref{hash: sha256.Sum256(b), size: uint32(len(b)), records: uint32(records)}
	f.chunks[r.hash] = b
	return r
}

// table replaces the recipients by the given records.
func (f *forgery) table(records ...string) {
	var b []byte
	for _, r := range records {
		b, _ = appendRecord(b, []byte(r), nil)
	}
	s := f.layout.section("recipients")
	s.chunks, s.records = []ref{f.add(b, len(records))}, uint64(len(records))
}

// settings replaces the settings.
func (f *forgery) settings(text string) {
	b, _ := appendRecord(nil, nil, []byte(text))
	f.layout[0].chunks, f.layout[0].records = []ref{f.add(b, 1)}, 1
}

// offer serves a forgery under a head.
func (e *evil) offer(t *testing.T, f *forgery, h *Head, edit func(*Head)) {
	t.Helper()
	var order []ref
	put := func(b []byte) {
		r := f.add(bytes.Clone(b), 0)
		order = append(order, r)
	}
	if f.index != nil {
		put(f.index)
	} else {
		f.layout.encode(put)
	}
	f.src.fill(h)
	h.Records, h.Octets, h.Chunks = f.layout.totals()
	h.index = order
	if edit != nil {
		edit(h)
	}
	raw := h.sign(testKey('p'))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.raw, e.chunks, e.answer = raw, f.chunks, nil
}

// respond lets a test answer requests.
func (e *evil) respond(h http.HandlerFunc) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answer = h
}

// bytes changes what is sent as the head.
func (e *evil) bytes(edit func(raw []byte) []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.raw = edit(bytes.Clone(e.raw))
}

// spoil changes an octet of every chunk under its name.
func (e *evil) spoil() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for h, b := range e.chunks {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		e.chunks[h] = b
	}
}

// try polls once, for a moment.
func try(t *testing.T, f *Follower) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return f.poll(ctx)
}
