package policysync

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune(seed)), ed25519.SeedSize)))
}

func testHead(now time.Time) *Head {
	return &Head{
		Stream: [16]byte{1, 2, 3}, Epoch: 1_700_000_000, Version: 7, Prev: hash{9},
		Records: 3, Recipients: 2, Octets: 100, Chunks: 2, Domains: 1, PerDomain: hash{8},
		index:   []ref{{hash: hash{7}, size: 90}},
		Created: time.Unix(now.Unix(), 0), Expires: time.Unix(now.Unix(), 0).Add(headLife),
		ServerPins: []Pin{{5}}, PolicyKeys: []Pin{Pin(publicOf(testKey('k')))}, Notice: "sql: connection refused",
	}
}

func TestHead(t *testing.T) {
	key := testKey('k')
	want := testHead(time.Now())
	raw := want.sign(key)
	got, err := openHead(raw, []Pin{{1}, Pin(publicOf(key))})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Head{}, ref{}), cmpopts.EquateApproxTime(0)); diff != "" {
		t.Error(diff)
	}
	body := raw[:len(raw)-ed25519.SignatureSize]
	for _, trusted := range [][]Pin{want.PolicyKeys, {Pin(publicOf(key)), Pin(publicOf(testKey('l')))}, {Pin(publicOf(testKey('l'))), Pin(publicOf(key))}} {
		if _, err := openHead(append(body[:len(body):len(body)], ed25519.Sign(testKey('m'), body)...), trusted); !errors.Is(err, errSignature) {
			t.Errorf("a head signed by a key that is none of %d trusted: %v", len(trusted), err)
		}
	}
	for n := range body {
		if _, err := decodeHead(body[:n]); err == nil {
			t.Fatalf("a head cut to %d of %d octets was read", n, len(body))
		}
		if _, err := openHead(raw[:n], want.PolicyKeys); !errors.Is(err, errSignature) {
			t.Fatalf("a signed head cut to %d octets: %v", n, err)
		}
		signed := append(body[:n:n], ed25519.Sign(key, body[:n])...)
		if _, err := openHead(signed, want.PolicyKeys); err == nil {
			t.Fatalf("a head cut to %d octets and signed was read", n)
		}
	}
	for i := range raw {
		bad := append([]byte(nil), raw...)
		bad[i] ^= 1
		if _, err := openHead(bad, want.PolicyKeys); !errors.Is(err, errSignature) {
			t.Fatalf("octet %d was changed: %v", i, err)
		}
	}
	if _, err := decodeHead(append(body[:len(body):len(body)], 0)); err == nil || !strings.Contains(err.Error(), "follow") {
		t.Errorf("a trailing octet: %v", err)
	}
	// The identity doesn't change with the signature.
	id := want.identity
	want.Created, want.Notice, want.ServerPins = want.Created.Add(time.Minute), "", append(want.ServerPins, Pin{6})
	if want.sign(key); want.identity != id {
		t.Error("a new signature changed the identity")
	}
	if want.Version++; want.Identity() != id {
		t.Error("identity")
	}
	if want.sign(key); want.Identity() == id {
		t.Error("another version has the same identity")
	}
}

func TestJudge(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	stream, self := [16]byte{1, 2, 3}, Pin{42}
	held := func() *Head {
		h := testHead(now)
		h.sign(testKey('k'))
		return h
	}
	for _, tt := range []struct {
		name string
		edit func(h *Head)
		now  time.Duration
		want Alarm
	}{
		{"same version, newly signed", func(h *Head) { h.Version = 7; h.Prev = hash{9} }, 0, ""},
		{"next version", func(h *Head) {}, 0, ""},
		{"versions missed", func(h *Head) { h.Version = 12; h.Prev = hash{1} }, 0, ""},
		{"new epoch", func(h *Head) { h.Epoch++; h.Version = 1; h.Prev = hash{} }, 0, ""},
		{"new epoch with the version's number", func(h *Head) { h.Epoch++; h.Version = 7 }, 0, ""},
		{"new epoch with the next number", func(h *Head) { h.Epoch++; h.Prev = hash{1} }, 0, ""},
		{"for us", func(h *Head) { h.Audience = self }, 0, ""},
		{"clocks four minutes apart", func(h *Head) { h.Created = now.Add(4 * time.Minute); h.Expires = h.Created.Add(headLife) }, 0, ""},
		{"other stream", func(h *Head) { h.Stream[0]++ }, 0, AlarmStream},
		{"for another", func(h *Head) { h.Audience = Pin{43} }, 0, AlarmAudience},
		{"older version", func(h *Head) { h.Version = 6 }, 0, AlarmRollback},
		{"older epoch", func(h *Head) { h.Epoch--; h.Version = 1000 }, 0, AlarmRollback},
		{"two contents", func(h *Head) { h.Version = 7; h.Records++ }, 0, AlarmEquivocal},
		{"two predecessors", func(h *Head) { h.Version = 7; h.Prev = hash{10} }, 0, AlarmEquivocal},
		{"older signature", func(h *Head) { h.Version = 7; h.Prev = hash{9}; h.Created = h.Created.Add(-time.Second) }, 0, AlarmReplay},
		{"newer version with older signature", func(h *Head) { h.Created = h.Created.Add(-time.Second) }, 0, AlarmReplay},
		{"doesn't follow", func(h *Head) { h.Prev = hash{1} }, 0, AlarmFork},
		{"version 0", func(h *Head) { h.Epoch++; h.Version = 0 }, 0, AlarmFork},
		{"first version with a predecessor", func(h *Head) { h.Epoch++; h.Version = 1 }, 0, AlarmFork},
		{"expired", func(h *Head) {}, time.Hour, AlarmExpired},
		{"our clock a year ahead", func(h *Head) {}, 365 * 24 * time.Hour, AlarmExpired},
		{"our clock a year behind", func(h *Head) {}, -365 * 24 * time.Hour, AlarmFuture},
		{"its clock a year ahead", func(h *Head) { h.Created = now.AddDate(1, 0, 0); h.Expires = h.Created.Add(headLife) }, 0, AlarmFuture},
		{"lives too long", func(h *Head) { h.Expires = h.Created.Add(2 * time.Hour) }, 0, AlarmLifetime},
		{"expires before it was made", func(h *Head) { h.Expires = h.Created }, 0, AlarmLifetime},
		{"epoch in the future", func(h *Head) { h.Epoch = uint64(now.Unix()) + 10; h.Version = 1; h.Prev = hash{} }, 0, AlarmFastForward},
		{"highest epoch", func(h *Head) { h.Epoch = 1<<64 - 1 }, 0, AlarmFastForward},
		{"highest version", func(h *Head) { h.Version = 1<<64 - 1 }, 0, AlarmFastForward},
		{"version that time can't have made", func(h *Head) { h.Version = 100_000_000 + burst + 1 }, 0, AlarmFastForward},
	} {
		t.Run(tt.name, func(t *testing.T) {
			last := held()
			h := held()
			h.Version, h.Prev = 8, last.identity
			tt.edit(h)
			h.sign(testKey('k'))
			err := judge(last, h, stream, self, now.Add(tt.now))
			if got := alarmOf(err, ""); got != tt.want || (err == nil) != (tt.want == "") {
				t.Errorf("got %v, want alarm %q", err, tt.want)
			}
		})
	}
}

// TestAlarmTimes: what an operator reads about times names them, in UTC: whose
// clock is wrong shows there alone.
func TestAlarmTimes(t *testing.T) {
	h := testHead(time.Unix(1_800_000_000, 0))
	h.Expires = h.Created.Add(2 * time.Hour)
	const want = "the head is valid from 2027-01-15T08:00:00Z to 2027-01-15T10:00:00Z"
	if err := judgeTimes(h, h.Created); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestAlarmsAreListed(t *testing.T) {
	seen := map[Alarm]bool{}
	for _, a := range Alarms() {
		if seen[a] || a == "" {
			t.Errorf("alarm %q is listed twice", a)
		}
		seen[a] = true
	}
}
