package policysync

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

// Deadlines of the follower's requests. A chunk that takes longer than
// chunkTimeout comes at less than 2 kB/s.
const (
	dialTimeout  = 10 * time.Second
	chunkTimeout = 30 * time.Second
	pollTimeout  = longPoll + 30*time.Second
)

// longPoll is how long a publisher lets a poll wait; it signs anew as often.
const longPoll = time.Minute

// errGone says that a chunk no longer belongs to the publisher's version: there
// is a newer head.
var errGone = errors.New("the primary's policy changed meanwhile")

// client asks a publisher.
type client struct {
	self Pin
	base string
	tr   *http.Transport
	http http.Client
}

func newClient(fsys fileSystem, dir string, p *pairing) (*client, error) {
	key, err := loadKey(fsys, path.Join(dir, clientKeyFile), false)
	if err != nil {
		return nil, err
	}
	cfg, err := tlsConfig(key, func(pin Pin) error {
		if !anyPin(p.pins(), pin) {
			return alarm(AlarmPin, "%s showed key %s, which is not the paired primary's: another publisher answers there, or its directory was made anew; if that is intended, pair again with invite and join", p.Address, pin)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return clientOf(key, cfg, p.Address, nil), nil
}

// clientOf makes a client of a TLS configuration. dial replaces the
// connection's making, when it is set.
func clientOf(key ed25519.PrivateKey, cfg *tls.Config, address string, dial func(context.Context, string, string) (net.Conn, error)) *client {
	d := &net.Dialer{Timeout: dialTimeout}
	c := &client{self: PinOf(publicOf(key)), base: "https://" + address, tr: &http.Transport{
		DialContext:            d.DialContext,
		DialTLSContext:         dial,
		TLSClientConfig:        cfg,
		TLSHandshakeTimeout:    dialTimeout,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
		Protocols:              new(http.Protocols),
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}}
	c.tr.Protocols.SetHTTP2(true)
	c.http = http.Client{Transport: c.tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c
}

func (c *client) close() { c.tr.CloseIdleConnections() }

// do sends a request and returns the answer's body, of at most limit octets.
func (c *client) do(ctx context.Context, method, target string, body []byte, limit int) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+target, bytes.NewReader(body))
	if err != nil {
		return nil, nil, fmt.Errorf("ask the primary: %w", err)
	}
	req.Header.Set("Accept-Encoding", "zstd")
	req.Header.Set("User-Agent", "understudy")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, nil, explain(err)
	}
	defer resp.Body.Close()
	switch code := resp.StatusCode; {
	case code == http.StatusOK || code == http.StatusNoContent:
	case code == http.StatusForbidden || code == http.StatusUnauthorized:
		return nil, nil, alarm(AlarmRefused, "the primary doesn't know our key: it was revoked there; pair again with invite and join")
	case code == http.StatusConflict && method == http.MethodGet:
		return nil, nil, alarm(AlarmSecret, "the primary hashes recipients now, and this pairing is older than that: pair again with invite and join")
	case code == http.StatusNotFound:
		return nil, nil, errGone
	case code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable:
		return nil, nil, alarm(AlarmUnreachable, "the primary is busy or has no policy yet (HTTP %d)", code)
	default:
		return nil, nil, alarm(AlarmProtocol, "the primary answers HTTP %d", code)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)+1))
	if err != nil {
		return nil, nil, explain(err)
	}
	if len(b) > limit {
		return nil, nil, alarm(AlarmProtocol, "the primary's answer is longer than %d octets", limit)
	}
	return b, resp.Header, nil
}

// explain sorts a transport's error into its alarm.
func explain(err error) error {
	var a *AlarmError
	var op *net.OpError
	switch {
	case errors.As(err, &a):
		return a
	case errors.As(err, &op) && op.Op == "remote error", // a TLS alert; crypto/tls keeps its type to itself
		// net/http swallows the alert when it comes before the first request;
		// TestRevoke tells when that ends.
		strings.Contains(err.Error(), "client conn could not be established"):
		return alarm(AlarmRefused, "the primary refused our key: it was revoked there, or no invitation is open: %w", err)
	}
	if op != nil && op.Op == "dial" {
		return alarm(AlarmUnreachable, "%w: start `understudy publish` there, let its port through the firewall, or correct publish.address and invite again", err)
	}
	return alarm(AlarmUnreachable, "%w", err)
}

// head waits for a head that isn't of version after, or is newly signed.
func (c *client) head(ctx context.Context, after uint64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	b, _, err := c.do(ctx, http.MethodGet, "/v1/head?after="+strconv.FormatUint(after, 10), nil, maxHead)
	return b, err
}

// chunk gets a chunk's frame.
func (c *client) chunk(ctx context.Context, h hash) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	b, header, err := c.do(ctx, http.MethodGet, "/v1/chunks/"+hex.EncodeToString(h[:]), nil, maxFrame)
	if err == nil && header.Get("Content-Encoding") != "zstd" {
		return nil, alarm(AlarmProtocol, "the primary sent a chunk that is not compressed")
	}
	return b, err
}

// post sends v as JSON; the answer has no more than limit octets.
func (c *client) post(ctx context.Context, target string, v any, limit int) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	b, _, err := c.do(ctx, http.MethodPost, target, body, limit)
	return b, err
}
