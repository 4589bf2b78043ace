package push

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/understudy-mx/understudy/internal/pushed"
)

// Client pushes lists to a Server.
type Client struct {
	URL   string // without the path, such as https://mx2.example.org:9628
	Token string
	Roots *x509.CertPool // nil: the system's
	Tries int
	Wait  func(context.Context, time.Duration) error // nil: a timer's
	Say   func(text string)                          // told of each try that failed; nil: nobody
}

// Refusal is an answer of the server that isn't 2xx.
type Refusal struct {
	Status int
	Text   string
	after  time.Duration
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("the server answers %d: %q", r.Status, r.Text)
}

// again says whether another try may do better.
func (r *Refusal) again() bool {
	return r.Status >= 500 || r.Status == http.StatusTooManyRequests || r.Status == http.StatusPreconditionFailed || r.Status == http.StatusRequestTimeout
}

// Push makes the server's list of domain the one given, whose addresses are folded,
// sorted and distinct. before is the list that the server may still have, from which
// a difference can be made; nil for none. What did the server already have costs a
// confirmation only. sent says how: "PUT", "PATCH" or "confirmed".
func (c *Client) Push(ctx context.Context, domain string, list, before []string) (a Answer, sent string, err error) {
	wait := time.Second
	for try := 1; ; try++ {
		a, sent, err = c.once(ctx, domain, list, before)
		var no *Refusal
		if err == nil || try >= c.Tries || ctx.Err() != nil || errors.As(err, &no) && !no.again() {
			return a, sent, err
		}
		if c.Say != nil {
			c.Say(err.Error())
		}
		pause := wait
		if no != nil && no.after > 0 {
			pause = min(no.after, time.Minute)
		}
		if err := c.rest(ctx, pause); err != nil {
			return a, sent, err
		}
		wait = min(2*wait, time.Minute)
	}
}

func (c *Client) rest(ctx context.Context, d time.Duration) error {
	if c.Wait != nil {
		return c.Wait(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) once(ctx context.Context, domain string, list, before []string) (a Answer, sent string, err error) {
	now, err := c.call(ctx, http.MethodGet, domain, "", nil, "")
	if err != nil {
		return now, "", err
	}
	var ch struct {
		Added   []string `json:"added,omitempty"`
		Removed []string `json:"removed,omitempty"`
	}
	sent = "PUT"
	switch {
	case now.ETag == pushed.ETag(list):
		sent = "confirmed"
	case before != nil && now.ETag == pushed.ETag(before):
		ch.Added, ch.Removed = Difference(before, list)
		if n := len(ch.Added) + len(ch.Removed); n <= pushed.MaxChange && 2*n < len(list) {
			sent = "PATCH"
		}
	}
	if sent != "PUT" {
		b, err := json.Marshal(&ch)
		if err != nil {
			return a, sent, err
		}
		a, err = c.call(ctx, http.MethodPatch, domain, now.ETag, b, "application/json")
		return a, sent, err
	}
	var b bytes.Buffer
	for _, addr := range list {
		b.WriteString(addr)
		b.WriteByte('\n')
	}
	a, err = c.call(ctx, http.MethodPut, domain, now.ETag, b.Bytes(), "text/plain")
	return a, sent, err
}

// Difference says what makes the sorted list from before into now.
func Difference(before, now []string) (added, removed []string) {
	for len(before) > 0 || len(now) > 0 {
		switch {
		case len(before) == 0 || len(now) > 0 && now[0] < before[0]:
			added, now = append(added, now[0]), now[1:]
		case len(now) == 0 || before[0] < now[0]:
			removed, before = append(removed, before[0]), before[1:]
		default:
			before, now = before[1:], now[1:]
		}
	}
	return added, removed
}

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 10

func (c *Client) call(ctx context.Context, method, domain, match string, content []byte, kind string) (a Answer, err error) {
	packed := content
	if len(content) > 1024 {
		z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
		if err != nil {
			return a, err
		}
		packed = z.EncodeAll(content, nil)
		z.Close()
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+prefix+domain, bytes.NewReader(packed))
	if err != nil {
		return a, err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if kind != "" {
		sum := sha256.Sum256(packed)
		req.Header.Set("Content-Type", kind)
		req.Header.Set("Content-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		if len(content) > 1024 {
			req.Header.Set("Content-Encoding", "zstd")
		}
	}
	if match != "" {
		req.Header.Set("If-Match", `"`+match+`"`)
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true, TLSHandshakeTimeout: headerTime, Proxy: http.ProxyFromEnvironment}
	h := &http.Client{Transport: t, Timeout: listTime, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := h.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 != 2 {
		var text struct{ Error string }
		_ = json.Unmarshal(b, &text) // a proxy's answer may be anything
		after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return a, &Refusal{resp.StatusCode, text.Error, time.Duration(after) * time.Second}
	}
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		err = fmt.Errorf("read the server's answer: %w", err)
	}
	return a, err
}

// ReadList reads a list as readLines does, and folds, sorts and checks it. A line
// may be a comment. What is wrong names its line.
func ReadList(r io.Reader, domain string) ([]string, error) {
	var list []string
	err := readLines(r, func(text string) error {
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			return nil
		}
		addr, err := pushed.Address(text, domain)
		if err == nil {
			list = append(list, addr)
		}
		return err
	})
	if err == nil && len(list) == 0 {
		err = errors.New("the list is empty: nothing is pushed")
	}
	slices.Sort(list)
	return slices.Compact(list), err
}
