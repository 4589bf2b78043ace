package page

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/understudy-mx/understudy/internal/control"
	"github.com/understudy-mx/understudy/internal/service"
)

// headers allow nothing but the page's own files, requests to its own origin, and
// text that never becomes markup.
var headers = map[string]string{
	"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; " +
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
	"X-Content-Type-Options":       "nosniff",
	"X-Frame-Options":              "DENY",
	"Referrer-Policy":              "no-referrer",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Permissions-Policy":           "camera=(), geolocation=(), microphone=()",
	"Cache-Control":                "no-store",
}

// guard answers only requests for a name of ours. A foreign page whose name
// resolves to this address (DNS rebinding) sends that name as Host.
func (p *Page) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range headers {
			w.Header().Set(name, value)
		}
		if !p.ours(r.Host) {
			control.Fail(w, http.StatusMisdirectedRequest, errors.New("not a name of this page; list it under [web] hosts if it is"))
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (p *Page) ours(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if a, err := netip.ParseAddr(host); err == nil {
		return a.IsLoopback()
	}
	return host == "localhost" || slices.Contains(p.o.Hosts, host)
}

// caller is who asks.
type caller struct {
	name      string // for the log
	addresses bool   // may see envelopes, and settle held mail
}

// known identifies the caller, by the token or by the header of a proxy.
func (p *Page) known(r *http.Request) (caller, bool) {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && p.o.Token != "" {
		got, want := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(p.o.Token))
		if subtle.ConstantTimeCompare(got[:], want[:]) == 1 {
			return caller{"token", p.o.Addresses != ForNone}, true
		}
	}
	if p.o.Header == "" {
		return caller{}, false
	}
	// A proxy that appends leaves the client's own value beside its own.
	if names := r.Header.Values(p.o.Header); len(names) == 1 && names[0] != "" {
		return caller{show(names[0]), p.o.Addresses == ForAll}, true
	}
	return caller{}, false
}

// forKnown admits known callers, and only requests of our own page: a proxy may
// use cookies or passwords that browsers send with any page's requests.
func (p *Page) forKnown(do func(http.ResponseWriter, *http.Request, caller)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		who, ok := p.known(r)
		if !ok {
			control.Fail(w, http.StatusForbidden, errors.New("the token is missing or wrong; `understudy page` prints the address with it"))
			return
		}
		if !sameOrigin(r) {
			control.Fail(w, http.StatusForbidden, errors.New("asked by another page"))
			return
		}
		do(w, r, who)
	}
}

// sameOrigin reports whether our own page asks. A POST needs an Origin.
func sameOrigin(r *http.Request) bool {
	site, origin := r.Header.Get("Sec-Fetch-Site"), r.Header.Get("Origin")
	if site != "" && site != "same-origin" {
		return false
	}
	if origin == "" {
		return r.Method == http.MethodGet
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

// Listen opens host:port, or "unix:" and the path of a socket, which gets mode 0660.
func Listen(addr string) (net.Listener, error) {
	path, unix := strings.CutPrefix(addr, "unix:")
	if !unix {
		return service.Listen(addr)
	}
	l, err := control.Listen(path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, fmt.Errorf("open socket to its group: %w", err)
	}
	return l, nil
}

// minToken is the length of a token that can't be guessed, in octets.
const minToken = 20

// Token reads the token from a file, or creates the file with a new one.
func Token(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		token := rand.Text()
		if err := service.ReplaceFile(file, []byte(token+"\n")); err != nil {
			return "", fmt.Errorf("make token: %w", err)
		}
		return token, nil
	}
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	fi, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("read token: anybody may read %s; chmod 600 it, and replace its content", file)
	}
	token := strings.TrimSpace(string(b))
	if len(token) < minToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("read token: %s must hold one word of at least %d ASCII characters; remove it, and a good one is made at the next start", filepath.Clean(file), minToken)
	}
	return token, nil
}
