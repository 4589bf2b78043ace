// Package control is the operator's way to a running daemon: HTTP over a Unix
// socket in the state directory. The queue's store belongs to one process, so
// the command line asks that process.
//
// The package carries requests and errors; their meaning is up to server and
// client. Opening the socket gives full control, so only its owner may: mode 0600.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

// The bounds of one control socket.
const (
	maxConns       = 16
	maxRequest     = 64 << 10
	maxAnswer      = 1 << 20 // of an answer that is not a stream
	requestTimeout = 10 * time.Second
	answerTimeout  = 10 * time.Minute // a long list, read by a person
)

// maxPath is what a Unix socket's address holds on Linux, its NUL excluded.
const maxPath = 107

// SocketPath is where the daemon of a state directory listens.
func SocketPath(stateDir string) string { return filepath.Join(stateDir, "control.sock") }

// Listen opens the socket. It removes the socket of a dead daemon, not that of a
// living one. The caller MUST already own the state directory (by the queue's
// lock), or two starting daemons could race here.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("listen on socket %s: the name is longer than the %d bytes that a Unix socket may have; choose a shorter state_dir", path, maxPath)
	}
	if c, err := net.DialTimeout("unix", path, requestTimeout); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen on socket %s: another daemon answers there", path)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket: %w", err)
	}
	// Until here a usual umask (022) lets only the owner connect as well.
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("protect socket: %w", err)
	}
	return l, nil
}

// Serve answers requests by h until ctx ends, then lets those under way finish
// for a moment, and removes the socket.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{
		Handler:           http.MaxBytesHandler(h, maxRequest),
		ReadTimeout:       requestTimeout,
		ReadHeaderTimeout: requestTimeout,
		WriteTimeout:      answerTimeout,
		MaxHeaderBytes:    maxRequest,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	})
	err := s.Serve(netutil.LimitListener(known{l}, maxConns))
	if stop() {
		return fmt.Errorf("serve control socket: %w", err)
	}
	<-done
	return nil
}

// answerError is how a refusal travels.
type answerError struct {
	Error string `json:"error"`
}

// Fail answers with an error that the operator is to read.
func Fail(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// A client that has gone away needs no answer.
	_ = json.NewEncoder(w).Encode(answerError{err.Error()})
}

// Client asks a daemon.
type Client struct {
	// Program starts the daemon; it is named when none answers. The default is
	// "understudy serve".
	Program string

	path string
	http http.Client
}

// Dial makes a client of the daemon behind a socket. It connects at the first
// request.
func Dial(path string) *Client {
	c := &Client{Program: "understudy serve", path: path}
	c.http.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		d := net.Dialer{Timeout: requestTimeout}
		return d.DialContext(ctx, "unix", path)
	}, DisableCompression: true, ResponseHeaderTimeout: time.Minute}
	return c
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Stream sends a request and returns the answer's body, which the caller
// closes. target is a path and perhaps a query.
func (c *Client) Stream(ctx context.Context, method, target string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://understudy"+target, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the daemon: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var refusal answerError
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&refusal); err != nil || refusal.Error == "" {
		return nil, fmt.Errorf("the daemon at %s answers %s: is it of the same version as this command?", c.path, resp.Status)
	}
	return nil, errors.New(refusal.Error)
}

// Call sends a request and decodes the JSON answer into answer, if not nil.
func (c *Client) Call(ctx context.Context, method, target string, answer any) error {
	body, err := c.Stream(ctx, method, target)
	if err != nil {
		return err
	}
	defer body.Close()
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(answer); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// explain turns a failed connection into an error that an operator can act on.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("no daemon answers at %s: is `%s` running? If its state_dir is another one, name its configuration with -c", c.path, c.Program)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("not allowed to use %s: run this as root or as the daemon's user", c.path)
	}
	return fmt.Errorf("ask the daemon at %s: %w", c.path, err)
}
