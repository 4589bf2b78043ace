package queue

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/envelope"
)

func fullRecord() *record {
	env := *mailTo("a@example.com", "b@example.net")
	r := &record{seq: 7, env: env, size: 1234, sum: [32]byte{1, 2, 3}, inline: true}
	r.env.ID = "0123456789abcdef"
	r.env.To = nil
	r.env.Received = time.Unix(1_795_000_000, 5)
	r.env.UTF8 = true
	for i, to := range env.To {
		r.rcpts = append(r.rcpts, recipient{Recipient: to, state: deferred, attempts: 3 + i, since: 1, alive: 2,
			last: 3, next: 4, reply: envelope.NewReply(450, "4.2.0", "later")})
	}
	r.rcpts[1].state, r.rcpts[1].reason = held, refused
	return r
}

func TestRecordRoundTrip(t *testing.T) {
	for _, want := range []*record{fullRecord(), {env: envelope.Envelope{ID: "0123456789abcdef", Received: time.Unix(0, 0)}, rcpts: []recipient{}}} {
		got, err := decodeRecord(want.encode())
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// Every flipped bit and every cut is noticed.
func TestRecordDamage(t *testing.T) {
	good := fullRecord().encode()
	for i := range good {
		if _, err := decodeRecord(good[:i]); !errors.Is(err, errRecord) {
			t.Errorf("cut at %d: %v", i, err)
		}
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if _, err := decodeRecord(bad); !errors.Is(err, errRecord) {
				t.Errorf("bit %d of octet %d: %v", bit, i, err)
			}
		}
	}
}

// The payload is sealed anew, so that the fuzzer gets past the checksum.
func FuzzDecodeRecord(f *testing.F) {
	f.Add(fullRecord().encode()[5:])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := decodeRecord(seal(payload))
		if err != nil {
			if !errors.Is(err, errRecord) {
				t.Fatal(err)
			}
			return
		}
		r.index(routeByDomain)
		again, err := decodeRecord(r.encode())
		if err != nil || !bytes.Equal(again.encode(), r.encode()) {
			t.Fatalf("a record does not survive its own encoding: %v", err)
		}
	})
}
