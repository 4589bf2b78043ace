package control

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// start serves h until the test ends.
func start(t *testing.T, h http.Handler) (path string) {
	t.Helper()
	path = SocketPath(t.TempDir())
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket after shutdown: %v, want none", err)
		}
	})
	return path
}

func TestCall(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/x", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"a":"`+r.FormValue("a")+`"}`)
	})
	mux.HandleFunc("POST /v1/x", func(w http.ResponseWriter, _ *http.Request) {
		Fail(w, http.StatusNotFound, errors.New("no such thing"))
	})
	path := start(t, mux)
	c := Dial(path)
	defer c.Close()
	var got struct{ A string }
	if err := c.Call(t.Context(), "GET", "/v1/x?a=b", &got); err != nil || got.A != "b" {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := c.Call(t.Context(), "POST", "/v1/x", nil); err == nil || err.Error() != "no such thing" {
		t.Errorf("refusal: got %v", err)
	}
	if err := c.Call(t.Context(), "GET", "/v2", nil); err == nil || !strings.Contains(err.Error(), "same version") {
		t.Errorf("unknown page: got %v", err)
	}
}

func TestSocketIsTheOwnersAlone(t *testing.T) {
	path := start(t, http.NotFoundHandler())
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := fi.Mode().Perm(); got != 0o600 {
		t.Errorf("mode: got %v, want 0600", got)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("second daemon: got %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := SocketPath(t.TempDir())
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	again, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestNothingButASocketIsRemoved(t *testing.T) {
	path := SocketPath(t.TempDir())
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(path); err == nil {
		l.Close()
		t.Error("a file was replaced")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("file: got %q, %v", b, err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{SocketPath(dir), filepath.Join(dir, "none", "x.sock")} {
		err := Dial(path).Call(t.Context(), "GET", "/", nil)
		if err == nil || !strings.Contains(err.Error(), "is `understudy serve` running?") || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v", err)
		}
	}
}

func TestLongPath(t *testing.T) {
	if _, err := Listen("/" + strings.Repeat("x", maxPath)); err == nil || !strings.Contains(err.Error(), "shorter state_dir") {
		t.Errorf("got %v", err)
	}
}

func TestRequestIsBounded(t *testing.T) {
	path := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if n > maxRequest || err == nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		Fail(w, http.StatusRequestEntityTooLarge, errors.New("too long"))
	}))
	c := Dial(path)
	defer c.Close()
	resp, err := c.http.Post("http://understudy/", "text/plain", strings.NewReader(strings.Repeat("x", 2*maxRequest)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("got %s", resp.Status)
	}
}
