package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

func fullRecord() *Record {
	env := envelope.Envelope{From: envelope.ReversePath{Mailbox: envelope.Mailbox{Local: "sender", Domain: "example.org"}},
		Client: envelope.Client{Addr: netip.MustParseAddr("192.0.2.1"), Port: 4711, Name: "client.example.org", ReverseName: "reverse.example.org",
			NameStatus: 1, ReverseStatus: 2, Helo: "helo.example.org", Protocol: "ESMTP", TLS: "TLSv1.3"},
		EightBit: true, EnvID: "abc", Ret: "HDRS"}
	for _, domain := range []string{"example.com", "example.net"} {
		env.To = append(env.To, envelope.Recipient{Rule: "permit_listed", Notify: "NEVER",
			Path: envelope.ForwardPath{Mailbox: envelope.Mailbox{Local: "a", Domain: domain}}})
	}
	r := &Record{Seq: 7, Env: env, Size: 1234, Sum: [32]byte{1, 2, 3}, Inline: true}
	r.Env.ID = "0123456789abcdef"
	r.Env.To = nil
	r.Env.Received = time.Unix(1_795_000_000, 5)
	r.Env.UTF8 = true
	for i, to := range env.To {
		r.Recipients = append(r.Recipients, Recipient{Recipient: to, State: Deferred, Attempts: 3 + i, Since: 1, Alive: 2,
			Last: 3, Next: 4, Reply: envelope.NewReply(450, "4.2.0", "later")})
	}
	r.Recipients[1].State, r.Recipients[1].Reason = Held, Refused
	return r
}

func TestRecordRoundTrip(t *testing.T) {
	marked := fullRecord()
	marked.Env.MayHaveArrived = true
	checked := fullRecord()
	checked.Env.Auth = envelope.Auth{Checked: true, SPF: "pass", Vouched: "spf", DKIM: []envelope.Signature{{Domain: "example.org", Result: "pass"}, {Domain: "", Result: "fail"}}}
	all := checked.Clone()
	all.Env.MayHaveArrived, all.Env.Report = true, true
	for _, want := range []*Record{fullRecord(), marked, checked, all, {Env: envelope.Envelope{ID: "0123456789abcdef", Received: time.Unix(0, 0)}, Recipients: []Recipient{}}} {
		got, err := DecodeRecord(want.Encode())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// TestRecordParts: what came later stands at a record's end under its number,
// where the next version looks for it. What this version doesn't know is no part.
func TestRecordParts(t *testing.T) {
	base := fullRecord().Encode()[5:]
	for part, mark := range map[string]func(*envelope.Envelope){
		"\x01":                 func(e *envelope.Envelope) { e.MayHaveArrived = true },
		"\x02\x04pass\x00\x00": func(e *envelope.Envelope) { e.Auth = envelope.Auth{Checked: true, SPF: "pass"} },
		"\x02\x00\x00\x01\x0bexample.org\x04pass": func(e *envelope.Envelope) {
			e.Auth = envelope.Auth{Checked: true, DKIM: []envelope.Signature{{Domain: "example.org", Result: "pass"}}}
		},
		"\x03": func(e *envelope.Envelope) { e.Report = true },
	} {
		r := fullRecord()
		mark(&r.Env)
		payload := r.Encode()[5:]
		if got, found := bytes.CutPrefix(payload, base); !found || string(got) != part {
			t.Errorf("got %q, want %q", got, part)
		}
		if got, err := DecodeRecord(seal(payload)); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%q is read as %+v, %v", part, got, err)
		}
		if _, err := DecodeRecord(seal(append(payload, 4))); !errors.Is(err, ErrRecord) {
			t.Errorf("an unknown part after %q: %v", part, err)
		}
	}
}

// Every flipped bit and every cut is noticed.
func TestRecordDamage(t *testing.T) {
	good := fullRecord().Encode()
	for i := range good[5:] { // sealed as a whole one
		if _, err := DecodeRecord(seal(good[5 : 5+i])); !errors.Is(err, ErrRecord) {
			t.Errorf("the first %d octets: %v", i, err)
		}
	}
	least := (&Record{Env: envelope.Envelope{ID: "0123456789abcdef", Received: time.Unix(0, 0)}}).Encode()[5:]
	if _, err := DecodeRecord(seal(append(bytes.Clone(least[:len(least)-51]), least[len(least)-19:]...))); !errors.Is(err, ErrRecord) {
		t.Errorf("without a sum: %v", err)
	}
	r := fullRecord()
	r.Recipients[0].Reply.Code = 1000
	if _, err := DecodeRecord(r.Encode()); !errors.Is(err, ErrRecord) {
		t.Errorf("a reply of four digits: %v", err)
	}
	yes, no := fullRecord(), fullRecord()
	no.Env.UTF8 = false
	one, zero := yes.Encode()[5:], no.Encode()[5:]
	for i := range one {
		if one[i] != zero[i] {
			one[i] = 2
		}
	}
	if _, err := DecodeRecord(seal(one)); !errors.Is(err, ErrRecord) {
		t.Errorf("neither yes nor no: %v", err)
	}
	for i := range good {
		if _, err := DecodeRecord(good[:i]); !errors.Is(err, ErrRecord) {
			t.Errorf("cut at %d: %v", i, err)
		}
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if _, err := DecodeRecord(bad); !errors.Is(err, ErrRecord) {
				t.Errorf("bit %d of octet %d: %v", bit, i, err)
			}
		}
	}
}

// The payload is sealed anew, so that the fuzzer gets past the checksum.
func FuzzDecodeRecord(f *testing.F) {
	f.Add(fullRecord().Encode()[5:])
	f.Add([]byte{})
	r := fullRecord()
	r.Env.Auth, r.Env.Report = envelope.Auth{Checked: true, DKIM: []envelope.Signature{{Domain: "example.org", Result: "pass"}}}, true
	f.Add(r.Encode()[5:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := DecodeRecord(seal(payload))
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Fatal(err)
			}
			return
		}
		r.Index(func(domain string) string { return "mx." + domain })
		again, err := DecodeRecord(r.Encode())
		if err != nil || !bytes.Equal(again.Encode(), r.Encode()) {
			t.Fatalf("a record does not survive its own encoding: %v", err)
		}
	})
}

// TestRecordContent: a record that is sealed as it should be, and says what none
// may say, is as bad as a damaged one.
func TestRecordContent(t *testing.T) {
	for name, spoil := range map[string]func(*Record){
		"size": func(r *Record) { r.Size = -1 },
		"ID":   func(r *Record) { r.Env.ID = "../../etc/passwd" },
	} {
		r := fullRecord()
		spoil(r)
		if _, err := DecodeRecord(r.Encode()); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := fullRecord()
	r.Recipients = nil
	payload := r.Encode()[5:] // it ends in how many there are
	if _, err := DecodeRecord(seal(binary.AppendUvarint(payload[:len(payload)-1:len(payload)-1], 1<<40))); !errors.Is(err, ErrRecord) {
		t.Errorf("more recipients than octets: %v", err)
	}
	if _, err := DecodeRecordOf(7, []byte("garbage")); !errors.Is(err, ErrRecord) {
		t.Errorf("garbage: %v", err)
	}
	if _, err := DecodeRecordOf(8, fullRecord().Encode()); !errors.Is(err, ErrRecord) {
		t.Errorf("another's: %v", err)
	}
	if r, err := DecodeRecordOf(7, fullRecord().Encode()); err != nil || r.Seq != 7 {
		t.Errorf("its own: %v", err)
	}
}

func TestKeySeq(t *testing.T) {
	for key, want := range map[string]uint64{"": 0, "r": 0, "r1234567": 0, string(SeqKey(SpaceRecord, 9)): 9, string(LineKey("mx", 1<<40)): 1 << 40} {
		if got := KeySeq([]byte(key)); got != want {
			t.Errorf("%q: %d, want %d", key, got, want)
		}
	}
}
