package parity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"sync"
)

// A trace is a file of JSON texts, one a line: a traceHead, a traced for each
// session, in any order, and a traceEnd.
const traceVersion = 1

type traceHead struct {
	Trace   int    `json:"understudy_trace"`
	Primary string `json:"primary"` // whom it was recorded from, for the reader
}

type traced struct {
	Client   tracedClient    `json:"client"`
	Commands []tracedCommand `json:"commands"`
	Replies  []tracedReply   `json:"replies"`
}

type tracedClient struct {
	Addr    netip.Addr `json:"addr"`
	Name    octets     `json:"name,omitempty"`
	Reverse octets     `json:"reverse,omitempty"`
}

type tracedCommand struct {
	Line    octets `json:"line"`
	Message octets `json:"message,omitempty"`
}

type tracedReply struct {
	Code     int    `json:"code"`
	Enhanced string `json:"enhanced,omitempty"`
	Text     octets `json:"text,omitempty"`
}

type traceEnd struct {
	Sessions int `json:"sessions"`
}

// octets is text that JSON may not be able to hold, escaped as in a Go string
// literal.
type octets string

func (o octets) MarshalText() ([]byte, error) {
	q := strconv.Quote(string(o))
	return []byte(q[1 : len(q)-1]), nil
}

func (o *octets) UnmarshalText(b []byte) error {
	s, err := strconv.Unquote(`"` + string(b) + `"`)
	*o = octets(s)
	return err
}

// Recorder writes a trace: what a primary replied, to be compared with a
// policy when the primary can't be asked.
type Recorder struct {
	mu  sync.Mutex // guards all below
	enc *json.Encoder
	n   int
	err error // the first
}

// NewRecorder begins a trace of the primary called so.
func NewRecorder(w io.Writer, primary string) *Recorder {
	r := &Recorder{enc: json.NewEncoder(w)}
	r.enc.SetEscapeHTML(false)
	r.err = r.enc.Encode(traceHead{traceVersion, primary})
	return r
}

// Add records a session. Close tells its error. Any number of goroutines may
// call it.
func (r *Recorder) Add(s Session, primary Transcript) {
	t := traced{Client: tracedClient{s.Client.Addr, octets(s.Client.Name), octets(s.Client.Reverse)}}
	for _, c := range s.Commands {
		t.Commands = append(t.Commands, tracedCommand{octets(c.Line), octets(c.Message)})
	}
	for _, p := range primary {
		t.Replies = append(t.Replies, tracedReply{p.Code, p.Enhanced, octets(p.Text)})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = r.enc.Encode(t)
		r.n++
	}
}

// Close ends the trace. Without its end a trace is refused.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = r.enc.Encode(traceEnd{r.n})
	}
	return r.err
}

// session is what was recorded.
func (t *traced) session() (s Session, primary Transcript, err error) {
	s.Client = Client{t.Client.Addr, string(t.Client.Name), string(t.Client.Reverse)}
	for _, c := range t.Commands {
		s.Commands = append(s.Commands, Command{string(c.Line), string(c.Message)})
	}
	for _, r := range t.Replies {
		primary = append(primary, Reply{r.Code, r.Enhanced, string(r.Text)})
	}
	if !t.Client.Addr.IsValid() || len(s.Commands) == 0 || len(primary) == 0 {
		err = errors.New("it lacks its client, its commands or its replies")
	}
	return s, primary, err
}

// Replay plays a trace's sessions on the local server and compares with what
// the primary replied then. A difference ends with the first reply that
// differs; it can't be made shorter without the primary. The error says that
// the trace is broken, at which line, or that the server can't be asked.
func Replay(ctx context.Context, trace io.Reader, local Dialer) (Result, error) {
	var res Result
	d := json.NewDecoder(trace)
	d.DisallowUnknownFields()
	var head traceHead
	if err := d.Decode(&head); err != nil {
		return res, fmt.Errorf("line 1: this is no trace: %w", err)
	}
	if head.Trace != traceVersion {
		return res, fmt.Errorf("line 1: understudy_trace %d is unknown; this program reads %d", head.Trace, traceVersion)
	}
	kinds := map[string]bool{}
	for line := 2; ; line++ {
		var text struct {
			traced
			traceEnd
		}
		switch err := d.Decode(&text); {
		case errors.Is(err, io.EOF):
			return res, fmt.Errorf("line %d: the trace ends here, without its end; record it anew", line)
		case err != nil:
			return res, fmt.Errorf("line %d: %w", line, err)
		case text.Commands == nil && text.Sessions != res.Sessions:
			return res, fmt.Errorf("line %d: %d sessions were recorded, %d are here", line, text.Sessions, res.Sessions)
		case text.Commands == nil:
			return res, nil
		}
		s, primary, err := text.session()
		if err != nil {
			return res, fmt.Errorf("line %d: %w", line, err)
		}
		diff := Difference{Session: s, Primary: primary}
		if diff.Local, err = local.Play(ctx, s); err != nil {
			return res, fmt.Errorf("line %d: local: %w", line, err)
		}
		res.add(diff, at(diff.Primary, diff.Local) >= 0, kinds)
	}
}
