// Package push carries lists of recipients by HTTPS: from a script beside a primary
// that can't be read, to a secondary or a publisher. docs/PUSH.md has the protocol.
//
//	PUT /v1/recipients/example.org HTTP/1.1
//	Authorization: Bearer 3q2-…
//	Content-Digest: sha-256=:X48E…=:
//	Content-Encoding: zstd
//
//	alice@example.org
//	bob@example.org
//
// Half a list must never count as a list: a body needs a length or a digest, and a
// chunked one that some tool has closed early has neither. A list with a single bad
// line is refused whole. 2xx is sent after the list would survive a power cut.
//
// What a list may do is package pushed's affair.
package push

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/internal/pushed"
	"github.com/understudy-mx/understudy/metrics"
)

// The bounds of the server.
const (
	maxConns     = 64
	maxLists     = 4 // received at a time
	maxHeader    = 8 << 10
	headerTime   = 10 * time.Second
	silence      = 30 * time.Second // between two pieces of a body
	listTime     = 10 * time.Minute // for a whole request
	maxChange    = 16 << 20         // octets of a PATCH, unpacked
	perAddress   = 64               // octets of a list for each address it may have, unpacked
	ticks        = time.Minute      // between looks for stale lists
	prefix       = "/v1/recipients/"
	retryAfter   = "5" // seconds
	maxErrorText = 300
)

// Options say what a Server serves.
type Options struct {
	Store           *pushed.Store
	TLSCert, TLSKey string // PEM files, read for each connection
	Log             *slog.Logger
	Metrics         *metrics.Metrics
}

// Server takes lists.
type Server struct {
	o Options

	mu        sync.Mutex          // guards what follows
	cert      *tls.Certificate    // the last good one
	receiving map[string]struct{} // domains whose lists are on their way
}

// New makes a server, if its certificate can be read.
func New(o Options) (*Server, error) {
	s := &Server{o: o, receiving: map[string]struct{}{}}
	o.Metrics.Pushed(s.stats)
	_, err := s.certificate(nil)
	return s, err
}

func (s *Server) stats() (m metrics.PushStats) {
	for _, st := range s.o.Store.Status() {
		if st.Stale || st.ETag == "" {
			m.Stale++
		}
		if st.Staged != nil {
			m.Staged++
		}
		m.Recipients += st.Count
	}
	return m
}

// certificate reads the pair anew, since certificates are renewed; a broken pair
// leaves the last good one in use.
func (s *Server) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(s.o.TLSCert, s.o.TLSKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		s.cert = &c
	case s.cert == nil:
		return nil, fmt.Errorf("push: certificate: %w", err)
	default:
		s.o.Log.Error("certificate of push refused, the last good one stays in use", "err", err)
	}
	return s.cert, nil
}

// Serve answers on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       listTime,
		WriteTimeout:      listTime,
		IdleTimeout:       headerTime,
		MaxHeaderBytes:    maxHeader,
		TLSConfig:         &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certificate},
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
		ConnContext:       withGuest,

		DisableGeneralOptionsHandler: true, // who has no token gets 401, whatever he asks

		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if h.Shutdown(grace) != nil {
			h.Close()
		}
	})
	err := h.ServeTLS(&crowd{Listener: l, most: maxConns}, "", "")
	if stop() {
		return fmt.Errorf("serve push: %w", err)
	}
	<-done
	return nil
}

// Run looks for lists that grow stale, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	t := time.NewTicker(ticks)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := s.o.Store.Tick(); err != nil {
				s.o.Log.Error("mark stale lists", "err", err)
			}
		}
	}
}

// problem is an answer that isn't 2xx. Its text goes to whoever has the token.
type problem struct {
	status int
	text   string
}

func (p *problem) Error() string { return p.text }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	domain, res, err := s.serve(w, r)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	status, result := verdict(res, err)
	s.o.Metrics.PushRequests.WithLabelValues(result).Inc()
	attrs := []any{"domain", domain, "method", method(r.Method), "result", result, "client", r.RemoteAddr}
	if err != nil {
		text := err.Error()
		if status == http.StatusInternalServerError {
			s.o.Log.Error("push failed", append(attrs, "err", text)...)
			text = "the list can't be stored now" // no paths
		} else {
			s.o.Log.Warn("push refused", append(attrs, "err", text[:min(len(text), maxErrorText)])...)
		}
		if status == http.StatusTooManyRequests {
			h.Set("Retry-After", retryAfter)
		}
		h.Set("Connection", "close")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": text[:min(len(text), maxErrorText)]})
		return
	}
	if r.Method != http.MethodGet {
		s.o.Log.Info("list of recipients pushed", append(attrs, "recipients", res.Count, "staged", res.Staged != nil)...)
	}
	h.Set("ETag", `"`+res.ETag+`"`)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(res)
}

// method keeps foreign text out of the log.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodPut, http.MethodPatch:
		return m
	}
	return "other"
}

// verdict is the status and the metric's label of an outcome.
func verdict(r *Answer, err error) (int, string) {
	var p *problem
	var size *http.MaxBytesError
	switch {
	case err == nil && r.read:
		return http.StatusOK, "read"
	case err == nil && r.Staged != nil:
		return http.StatusAccepted, "staged"
	case err == nil && !r.Changed:
		return http.StatusOK, "unchanged"
	case err == nil:
		return http.StatusOK, "applied"
	case errors.As(err, &p) && p.status == http.StatusUnauthorized:
		return p.status, "denied"
	case errors.Is(err, pushed.ErrUnknown):
		return http.StatusNotFound, "denied"
	case errors.Is(err, pushed.ErrETag):
		return http.StatusPreconditionFailed, "conflict"
	case errors.Is(err, pushed.ErrRejected):
		return http.StatusConflict, "rejected"
	case errors.Is(err, pushed.ErrBusy):
		return http.StatusTooManyRequests, "limited"
	case errors.Is(err, pushed.ErrTooLong), errors.As(err, &size), errors.Is(err, errSize):
		return http.StatusRequestEntityTooLarge, "limited"
	case errors.As(err, &p) && p.status == http.StatusTooManyRequests:
		return p.status, "limited"
	case errors.As(err, &p):
		return p.status, "refused"
	case errors.Is(err, pushed.ErrContent), errors.Is(err, errBody):
		return http.StatusUnprocessableEntity, "refused"
	}
	return http.StatusInternalServerError, "failed"
}

// Answer is the body of a 2xx.
type Answer struct {
	pushed.Result
	Pushed time.Time `json:"pushed,omitzero"`
	Stale  bool      `json:"stale,omitempty"`
	read   bool
}

// serve does what a request asks. domain is "" until the token was good for it.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) (domain string, a *Answer, err error) {
	if domain, err = s.admit(r); err != nil {
		return "", nil, err
	}
	defer seat(r)()
	match, err := ifMatch(r)
	if err != nil {
		return domain, nil, err
	}
	if r.Method == http.MethodGet {
		st, err := s.o.Store.One(domain)
		return domain, &Answer{pushed.Result{ETag: st.ETag, Count: st.Count, Staged: st.Staged}, st.Pushed, st.Stale, true}, err
	}
	if !s.begin(domain) {
		return domain, nil, &problem{http.StatusTooManyRequests, "another list of this domain, or too many of others, are being received"}
	}
	defer s.end(domain)
	res, err := s.take(w, r, domain, match)
	return domain, &Answer{Result: res}, err
}

// begin says that a list of domain may come: one at a time, so that whoever has one
// token, and sends slowly, keeps nobody else out.
func (s *Server) begin(domain string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, is := s.receiving[domain]; is || len(s.receiving) >= maxLists {
		return false
	}
	s.receiving[domain] = struct{}{}
	return true
}

func (s *Server) end(domain string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.receiving, domain)
}

// take stores what a PUT or a PATCH has.
func (s *Server) take(w http.ResponseWriter, r *http.Request, domain, match string) (res pushed.Result, err error) {
	most := int64(s.o.Store.MaxEntries())*perAddress + 1<<20
	if r.Method == http.MethodPatch {
		most = maxChange
	}
	b, err := openBody(w, r, most)
	if err != nil {
		return res, err
	}
	defer b.close()
	if r.Method == http.MethodPatch {
		c, err := readChange(b)
		if err != nil {
			return res, err
		}
		return s.o.Store.Change(domain, match, c.Added, c.Removed)
	}
	return s.o.Store.Replace(domain, match, func(add func(string) error) error {
		read := readLines
		if b.json {
			read = readJSON
		}
		if err := read(b, add); err != nil {
			return err
		}
		return b.finish()
	})
}

// admit looks whether a request is one that may be made. Who has no token learns
// nothing of domains.
func (s *Server) admit(r *http.Request) (domain string, err error) {
	domain = strings.TrimPrefix(r.RequestURI, prefix) // as sent: nothing is unescaped or cleaned
	token, bearer := strings.CutPrefix(one(r, "Authorization"), "Bearer ")
	if !bearer || !s.o.Store.Allowed(domain, token) {
		return "", &problem{http.StatusUnauthorized, "the token isn't that of this domain"}
	}
	for _, name := range []string{"Authorization", "If-Match", "Content-Type", "Content-Encoding", "Content-Digest", "If-None-Match"} {
		if len(r.Header.Values(name)) > 1 {
			return "", &problem{http.StatusBadRequest, name + " is there twice"}
		}
	}
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodPut && r.Method != http.MethodPatch:
		return "", &problem{http.StatusMethodNotAllowed, "GET, PUT or PATCH"}
	case r.Method == http.MethodGet:
	case r.Header.Values("Content-Range") != nil: // RFC 9110 §14.5
		return "", &problem{http.StatusBadRequest, "a list comes whole: Content-Range is part of one"}
	case r.Header.Values("If-None-Match") != nil:
		return "", &problem{http.StatusBadRequest, "If-None-Match isn't understood; use If-Match"}
	}
	return domain, nil
}

// one returns a header field that is there once.
func one(r *http.Request, name string) string {
	if v := r.Header.Values(name); len(v) == 1 {
		return v[0]
	}
	return ""
}

// ifMatch reads If-Match: one strong ETag of ours, or "*", which is any.
func ifMatch(r *http.Request) (string, error) {
	v := one(r, "If-Match")
	if v == "" || v == "*" {
		if r.Method == http.MethodPatch {
			return "", &problem{http.StatusPreconditionRequired, "PATCH needs If-Match with the ETag of the list that it changes"}
		}
		return "", nil
	}
	etag, ok := strings.CutPrefix(v, `"`)
	etag, end := strings.CutSuffix(etag, `"`)
	if b, err := hex.DecodeString(etag); !ok || !end || err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("%w: %w", pushed.ErrETag, &problem{http.StatusPreconditionFailed, "If-Match is no ETag of ours"})
	}
	return etag, nil
}
