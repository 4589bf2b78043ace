package policysync

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"github.com/understudy-mx/understudy/policy/table"
)

// Bounds of the publisher's server.
const (
	maxConns     = 256
	maxRequest   = 8 << 10
	peerInFlight = 64
	peerPolls    = 4
	peerRate     = 5000 // requests a second
	readTimeout  = 10 * time.Second
	writeTimeout = 60 * time.Second
)

// Serve answers followers on l until ctx ends.
func (p *Publisher) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           http.MaxBytesHandler(p.handler(), maxRequest),
		ReadTimeout:       readTimeout,
		ReadHeaderTimeout: readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxRequest,
		Protocols:         new(http.Protocols),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: peerInFlight, SendPingTimeout: 30 * time.Second},
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(p.o.Log.Handler(), slog.LevelDebug),
	}
	srv.Protocols.SetHTTP2(true)
	var wg sync.WaitGroup
	wg.Go(func() { p.resign(ctx) })
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // polls end with ctx, chunks are asked for again
	defer stop()
	err := srv.Serve(tls.NewListener(netutil.LimitListener(lingering{l}, maxConns), p.tlsConfig()))
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve policy: %w", err)
}

// lingering makes connections whose Close lets the peer read to the end. A
// stranger's request is on its way when we refuse the key; closed at once, the
// connection would be reset and the refusal lost.
type lingering struct{ net.Listener }

func (l lingering) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		return lingerConn{tcp}, err
	}
	return c, err
}

type lingerConn struct{ *net.TCPConn }

func (c lingerConn) Close() error {
	if c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = io.CopyN(io.Discard, c.TCPConn, 64<<10) // it is over in any case
	}
	return c.TCPConn.Close()
}

// tlsConfig lets paired keys in, and strangers only while someone is invited.
func (p *Publisher) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			p.mu.Lock()
			key := p.keys.server
			p.mu.Unlock()
			return tlsConfig(key, func(pin Pin) error {
				if _, known := p.peers.lookup(pin); known || p.peers.inviting(p.o.now()) {
					return nil
				}
				return errors.New("the client's key is not paired")
			})
		},
	}
}

func (p *Publisher) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", p.count("join", p.serveJoin))
	mux.HandleFunc("GET /v1/head", p.count("head", p.paired(p.serveHead)))
	mux.HandleFunc("GET /v1/chunks/{name}", p.count("chunk", p.paired(p.serveChunk)))
	mux.HandleFunc("POST /v1/report", p.count("report", p.paired(p.serveReport)))
	mux.HandleFunc("POST /v1/lists", p.count("lists", p.paired(p.serveLists)))
	mux.HandleFunc("POST /v1/passed", p.count("passed", p.paired(p.servePassed)))
	mux.HandleFunc("POST /v1/key", p.count("key", p.paired(p.serveKey)))
	return mux
}

// counted notes the status that a handler answers.
type counted struct {
	http.ResponseWriter
	code int
}

func (c *counted) WriteHeader(code int) {
	c.code = code
	c.ResponseWriter.WriteHeader(code)
}

func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (p *Publisher) count(endpoint string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := &counted{w, http.StatusOK}
		w.Header().Set("Cache-Control", "no-store")
		h(c, r)
		p.o.Metrics.PublishRequests.WithLabelValues(endpoint, strconv.Itoa(c.code/100)+"xx").Inc()
	}
}

func refuse(w http.ResponseWriter, code int) { http.Error(w, http.StatusText(code), code) }

// paired lets known keys through, each within its own limits.
func (p *Publisher) paired(h func(http.ResponseWriter, *http.Request, *peer)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		pin, err := peerPin(r.TLS)
		q, known := p.peers.lookup(pin)
		if err != nil || !known {
			refuse(w, http.StatusForbidden)
			return
		}
		if err := p.settleKey(&q, pin); err != nil {
			p.o.Log.Error("a follower's key could not be stored", "name", q.Name, "err", err)
			refuse(w, http.StatusInternalServerError)
			return
		}
		p.mu.Lock()
		s := p.seen[q.Name]
		if s == nil {
			s = &seen{limit: rate.NewLimiter(peerRate, 2*peerRate)}
			p.seen[q.Name] = s
		}
		ok := s.inFlight < peerInFlight && s.limit.AllowN(p.o.now(), 1)
		if ok {
			s.inFlight++
		}
		p.mu.Unlock()
		if !ok {
			refuse(w, http.StatusTooManyRequests)
			return
		}
		defer func() {
			p.mu.Lock()
			s.inFlight--
			p.mu.Unlock()
		}()
		h(w, r, &q)
	}
}

// settleKey ends a change of a follower's key when the new one is used.
func (p *Publisher) settleKey(q *peer, pin Pin) error {
	if len(q.Pins) < 2 || q.Pins[1] != pin {
		return nil
	}
	q.Pins = []Pin{pin}
	return p.peers.setPins(q.Name, q.Pins)
}

// serveHead answers at once when the follower has another version, else at the
// next signature.
func (p *Publisher) serveHead(w http.ResponseWriter, r *http.Request, q *peer) {
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		refuse(w, http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	s := p.seen[q.Name]
	if s == nil || s.polls >= peerPolls {
		p.mu.Unlock()
		refuse(w, http.StatusTooManyRequests)
		return
	}
	s.polls++
	s.polled = p.o.now()
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		s.from = a.Addr().Unmap()
	}
	raw, h, changed := p.raw, p.head, p.changed
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		s.polls--
		p.mu.Unlock()
	}()
	if h == nil || h.Version == after {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(longPoll + writeTimeout)) // every HTTP/2 stream has one
		p.o.waiting()
		raw = p.await(r.Context(), changed)
		if !p.peers.paired(q) {
			refuse(w, http.StatusForbidden)
			return
		}
	}
	raw, code := p.headFor(q, raw)
	if code != http.StatusOK {
		refuse(w, code)
		return
	}
	if raw == nil {
		refuse(w, http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(raw) // a follower that has gone asks again
}

// await returns the next head, nil when there is none within a long poll.
func (p *Publisher) await(ctx context.Context, changed chan struct{}) []byte {
	t := time.NewTimer(longPoll + readTimeout)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.raw
}

func (p *Publisher) serveChunk(w http.ResponseWriter, r *http.Request, q *peer) {
	name := r.PathValue("name")
	b, err := hex.DecodeString(name)
	if err != nil || len(b) != len(hash{}) || strings.ToLower(name) != name {
		refuse(w, http.StatusBadRequest)
		return
	}
	var chunk []byte
	if src := p.sourceFor(q); src != nil {
		chunk = src.chunk(hash(b))
	}
	if chunk == nil {
		refuse(w, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if strings.Contains(r.Header.Get("Accept-Encoding"), "zstd") {
		w.Header().Set("Content-Encoding", "zstd")
		if frame := p.last.frame(hash(b), chunk); frame != nil {
			chunk = frame
		} else {
			chunk = p.codec.pack(chunk)
		}
	}
	_, _ = w.Write(chunk) // a follower that has gone asks again
}

// readJSON reads a request's body strictly.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = strictJSON(b, v)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest)
	}
	return err == nil
}

func (p *Publisher) serveReport(w http.ResponseWriter, r *http.Request, q *peer) {
	rep := new(Report)
	if !readJSON(w, r, rep) {
		return
	}
	rep.clip()
	for _, u := range rep.Unsure {
		p.unsure.add(u, maxUnsureAll)
	}
	rep.Unsure, rep.Alarm = nil, ""
	if a := Alarm(r.URL.Query().Get("alarm")); slices.Contains(Alarms(), a) {
		rep.Alarm = a
	}
	p.mu.Lock()
	if s := p.seen[q.Name]; s != nil {
		if s.report == nil && rep.Alarm != "" || s.report != nil && rep.Alarm != s.report.Alarm {
			p.o.Log.Warn("a follower's alarm changed", "name", q.Name, "alarm", cmp.Or(string(rep.Alarm), "none"), "problem", rep.Health.Problem)
		}
		s.report = rep
	}
	sources := p.sources
	p.mu.Unlock()
	if r.URL.Query().Has("sources") {
		writeJSON(w, sourcesAnswer{sources}) // unlocked: a follower may be slow to read it
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// serveKey notes a follower's next key. The old one is good until the new one
// is used.
func (p *Publisher) serveKey(w http.ResponseWriter, r *http.Request, q *peer) {
	var req struct {
		Pin Pin `json:"pin"`
	}
	if !readJSON(w, r, &req) {
		return
	}
	// Its own next key may come again: it can have crashed before it used that.
	if owner, taken := p.peers.lookup(req.Pin); taken && (owner.Name != q.Name || owner.Pins[0] == req.Pin) {
		refuse(w, http.StatusConflict)
		return
	}
	if err := p.peers.setPins(q.Name, []Pin{q.Pins[0], req.Pin}); err != nil {
		p.o.Log.Error("a follower's key could not be stored", "name", q.Name, "err", err)
		refuse(w, http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (p *Publisher) serveJoin(w http.ResponseWriter, r *http.Request) {
	var req joinRequest
	if !p.joins.AllowN(p.o.now(), 1) {
		refuse(w, http.StatusTooManyRequests)
		return
	}
	if !readJSON(w, r, &req) {
		return
	}
	pin, err := peerPin(r.TLS)
	var msg []byte
	var secret *table.Secret
	if err == nil {
		msg, err = joinMessage(r.TLS, pin)
	}
	if err == nil {
		secret, err = exportSecret(r.TLS)
	}
	if err != nil {
		refuse(w, http.StatusForbidden)
		return
	}
	p.mu.Lock()
	a := joinAnswer{Stream: p.name, ServerPins: p.keys.pins(), PolicyKeys: p.keys.policies()}
	p.mu.Unlock()
	q, err := p.peers.redeem(req.Invite, req.Proof, msg, pin, p.o.now(), Fingerprint(a.ServerPins[0], pin, a.PolicyKeys[0]), secret)
	if err != nil {
		p.o.Log.Warn("an attempt to join was refused", "client", r.RemoteAddr, "err", err)
		refuse(w, http.StatusForbidden)
		return
	}
	p.o.Log.Info("follower paired", "name", q.Name, "fingerprint", q.Fingerprint)
	a.Name = q.Name
	writeJSON(w, a)
}
