package policysync

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/policy"
	"github.com/understudy-mx/understudy/policy/table"
)

// richSpec has a table of every kind.
func richSpec(t testing.TB) *policy.Spec {
	t.Helper()
	s := newSpec(t, []string{"example.org", "example.com"}, append(names(3000, "example.org"), names(2000, "example.com")...)...)
	access := map[string]string{}
	for i := range 500 {
		access[fmt.Sprintf("spammer%d@example.net", i)] = []string{"REJECT", "OK", "450 4.7.1 later"}[i%3]
	}
	h, err := table.NewHash(access)
	if err != nil {
		t.Fatal(err)
	}
	c, err := table.NewCIDR([][2]string{{"192.0.2.0/24", "OK"}, {"10.0.0.1", "REJECT"}, {"2001:db8::/32", "REJECT"}})
	if err != nil {
		t.Fatal(err)
	}
	empty, err := table.NewSet(nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Tables["access"], s.Tables["nets"], s.Tables["static"], s.Tables["empty"] = h, c, table.NewStatic("DUNNO"), empty
	if s.Tables["regexp"], err = table.NewRegexp([][2]string{{"/^bounce-/xi", "DUNNO"}, {"!/@/xi", "REJECT"}}); err != nil {
		t.Fatal(err)
	}
	if s.Tables["pcre"], err = table.NewPCRE([][2]string{{"if /^list-/", ""}, {"/(?<=x)y/i", "450 later"}, {"endif", ""}}); err != nil {
		t.Fatal(err)
	}
	s.Tables["union"], s.Tables["pipe"] = table.NewUnion([]string{"access", "regexp"}), table.NewPipe([]string{"access", "static"})
	s.Restrictions.Sender = []policy.Restriction{{Kind: "check_sender_access", Arg: "access"}, {Kind: "check_client_access", Arg: "nets"}}
	for i := range 3000 {
		s.Addresses.VirtualAliases.Domains = append(s.Addresses.VirtualAliases.Domains, fmt.Sprintf("d%04d.example.net", i))
	}
	s.Addresses.VirtualAliases.Recipients = []string{"empty"}
	return s
}

// load reads chunks from a source, counted.
func load(s *source, n *int) func(ref) ([]byte, error) {
	return func(r ref) ([]byte, error) {
		*n++
		b := s.chunk(r.hash)
		return b, r.verify(b)
	}
}

func layoutOf(t testing.TB, s *source) (*Head, layout) {
	t.Helper()
	h := new(Head)
	s.fill(h)
	var index []byte
	for _, r := range h.index {
		b := s.chunk(r.hash)
		if err := r.verify(b); err != nil {
			t.Fatal(err)
		}
		index = append(index, b...)
	}
	l, err := decodeLayout(index)
	if err != nil {
		t.Fatal(err)
	}
	return h, l
}

func source1(t testing.TB, s *policy.Spec) *source {
	t.Helper()
	src, err := newSource(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

func TestBuild(t *testing.T) {
	spec := richSpec(t)
	src := source1(t, spec)
	h, l := layoutOf(t, src)
	n := 0
	c, err := build(h, l, nil, load(src, &n))
	if err != nil {
		t.Fatal(err)
	}
	for what, lie := range map[string]func(*Head){
		"records": func(h *Head) { h.Records++ }, "octets": func(h *Head) { h.Octets-- }, "chunks": func(h *Head) { h.Chunks++ },
		"recipients": func(h *Head) { h.Recipients++ }, "domains": func(h *Head) { h.Domains++ }, "sums": func(h *Head) { h.PerDomain[0] ^= 1 },
	} {
		other := *h
		lie(&other)
		var alarm *AlarmError
		if _, err := build(&other, l, nil, load(src, new(int))); !errors.As(err, &alarm) || alarm.Alarm != AlarmContent {
			t.Errorf("a head with other %s: %v", what, err)
		}
	}
	want, _ := json.Marshal(spec)
	got, _ := json.Marshal(c.spec)
	if !bytes.Equal(want, got) {
		t.Errorf("the policy came through changed: %s", cmp.Diff(string(want), string(got)))
	}
	if n < 10 {
		t.Errorf("only %d chunks; the test wants many", n)
	}
	n = 0
	if _, err := build(h, l, c, load(src, &n)); err != nil || n != len(l[0].chunks) {
		t.Errorf("with all tables held %d chunks were loaded, not the %d of the settings: %v", n, len(l[0].chunks), err)
	}
	// A changed entry in each table.
	access := map[string]string{"new@example.net": "OK"}
	for i := range spec.Tables["access"].Len() {
		k, v := spec.Tables["access"].Entry(i)
		access[string(k)] = v
	}
	next := *spec
	next.Tables = map[string]*table.Table{}
	for k, v := range spec.Tables {
		next.Tables[k] = v
	}
	next.Tables["access"], _ = table.NewHash(access)
	next.Tables["nets"], _ = table.NewCIDR([][2]string{{"10.0.0.1", "OK"}})
	src2 := source1(t, &next)
	h2, l2 := layoutOf(t, src2)
	n = 0
	c2, err := build(h2, l2, c, load(src2, &n))
	if err != nil {
		t.Fatal(err)
	}
	want, _ = json.Marshal(&next)
	if got, _ = json.Marshal(c2.spec); !bytes.Equal(want, got) {
		t.Error("the changed policy came through changed")
	}
	if most := len(l2[0].chunks) + 5; n > most {
		t.Errorf("a small change loaded %d chunks, more than %d", n, most)
	}
}

// TestSettingsBound: a stolen key makes no follower read settings without end.
func TestSettingsBound(t *testing.T) {
	text := append([]byte(`{"version":1}`), bytes.Repeat([]byte(" "), maxSettings)...)
	for n := maxSettings; n <= maxSettings+1; n++ {
		chunks := map[hash][]byte{}
		s := new(section)
		for v := range slices.Chunk(text[:n], maxValue) {
			b, err := appendRecord(nil, nil, v)
			if err != nil {
				t.Fatal(err)
			}
			r := ref{hash: sha256.Sum256(b), size: uint32(len(b)), records: 1}
			s.chunks, chunks[r.hash] = append(s.chunks, r), b
		}
		_, err := buildSettings(s, func(r ref) ([]byte, error) { return chunks[r.hash], nil })
		if long := n > maxSettings; (err != nil) != long || long && alarmOf(err, "") != AlarmContent {
			t.Errorf("%d octets: %v", n, err)
		}
	}
}

// TestStableCuts changes one recipient among many, many times, and counts what
// a follower that held the rest would fetch.
func TestStableCuts(t *testing.T) {
	const n, rounds = 60_000, 30
	all := names(n, "example.org")
	before := source1(t, newSpec(t, []string{"example.org"}, all...))
	old := map[hash]ref{}
	before.layout.names(old)
	codec, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	defer codec.close()
	rng := rand.New(rand.NewPCG(1, 2))
	one, most := 0, 0
	for range rounds {
		i := rng.IntN(n)
		list := append(append([]string(nil), all[:i]...), all[i+1:]...)
		if rng.IntN(2) == 0 {
			list = append(list, fmt.Sprintf("user%07dx@example.org", i))
		}
		after := source1(t, newSpec(t, []string{"example.org"}, list...))
		chunks, octets := 0, 0
		for _, r := range after.order {
			if before.index[r.hash] == nil {
				octets += len(codec.pack(after.chunk(r.hash)))
			}
		}
		now := map[hash]ref{}
		after.layout.names(now)
		for h := range now {
			if _, had := old[h]; !had {
				chunks++
				octets += len(codec.pack(after.chunk(h)))
			}
		}
		if chunks == 1 {
			one++
		}
		most = max(most, octets)
	}
	if one < rounds*9/10 {
		t.Errorf("only %d of %d changes changed one chunk", one, rounds)
	}
	if most >= 64<<10-maxHead/16 {
		t.Errorf("a change sent %d octets of chunks", most)
	}
	t.Logf("%d of %d changes changed one chunk; at most %d octets", one, rounds, most)
}

func TestChunkBounds(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, size := range []int{1, 20, 300, 4000, 36000} {
		var got []byte
		records, sum := 0, 0
		c := cutter{mean: meanChunk, max: maxChunk, emit: func(b []byte, n int) {
			if len(b) > maxChunk || n < 1 {
				t.Fatalf("a chunk of %d octets and %d records", len(b), n)
			}
			got = append(got, b...)
			records += n
		}}
		var want []byte
		for range 2000 * 20 / size * 20 / 20 {
			rec := make([]byte, size)
			for i := range rec {
				rec[i] = byte(rng.Uint32())
			}
			c.add(rec)
			sum++
			want = append(want, rec...)
		}
		c.flush()
		if records != sum || !bytes.Equal(got, want) {
			t.Errorf("records of %d octets: %d of %d came through", size, records, sum)
		}
	}
	// Without any good place a cut is forced.
	forced := 0
	c := cutter{mean: 1 << 40, max: maxChunk, emit: func([]byte, int) { forced++ }}
	for range 10 {
		c.add(make([]byte, 10_000))
	}
	c.flush()
	if forced != 3 {
		t.Errorf("%d chunks of four records of 10,000 octets each, not 3", forced)
	}
}

func TestPublisherRefuses(t *testing.T) {
	long := newSpec(t, []string{"example.org"}, string(bytes.Repeat([]byte("a"), maxKey+1)))
	if _, err := newSource(long, nil); err == nil {
		t.Error("a key that is too long was taken")
	}
	named := newSpec(t, []string{"example.org"})
	named.Tables[string(bytes.Repeat([]byte("n"), 256))] = table.NewStatic("x")
	if _, err := newSource(named, nil); err == nil {
		t.Error("a table's name that is too long was taken")
	}
}
