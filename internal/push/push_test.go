package push

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/understudy-mx/understudy/internal/pushed"
	"github.com/understudy-mx/understudy/metrics"
)

const domain = "example.org"

// site is a server at work, with a list of ten in force.
type site struct {
	dir, certs, addr   string
	token, other, etag string // other is the token of example.net
	store              *pushed.Store
	roots              *x509.CertPool
}

func writePair(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: k}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return roots
}

func start(t *testing.T, most int) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, most, l)
}

func startOn(t *testing.T, most int, l net.Listener) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), certs: t.TempDir()}
	s.roots = writePair(t, s.certs)
	var err error
	if s.store, err = pushed.Open(pushed.Options{Dir: s.dir, Limits: pushed.Limits{Domains: []string{domain, "example.net"}, MaxEntries: most, StaleAfter: time.Hour}}); err != nil {
		t.Fatal(err)
	}
	if s.token, err = s.store.NewToken(domain, false); err != nil {
		t.Fatal(err)
	}
	if s.other, err = s.store.NewToken("example.net", false); err != nil {
		t.Fatal(err)
	}
	server, err := New(Options{Store: s.store, TLSCert: filepath.Join(s.certs, "cert"), TLSKey: filepath.Join(s.certs, "key"),
		Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())})
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, stop := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { stop(); work.Wait() })
	r, err := s.store.Replace(domain, "", func(add func(string) error) error { return addAll(add, users(10)) })
	if err != nil {
		t.Fatal(err)
	}
	s.etag = r.ETag
	return s
}

func addAll(add func(string) error, list []string) error {
	for _, a := range list {
		if err := add(a); err != nil {
			return err
		}
	}
	return nil
}

func users(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("u%07d@example.org", i))
	}
	return list
}

// raw sends octets over TLS and returns the status, 0 for none.
func (s *site) raw(t *testing.T, octets []byte, half bool) int {
	t.Helper()
	if resp := s.response(t, octets, half); resp != nil {
		return resp.StatusCode
	}
	return 0
}

// response is raw for all of the answer, nil for none.
func (s *site) response(t *testing.T, octets []byte, half bool) *http.Response {
	t.Helper()
	c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() {
		_, _ = c.Write(octets) // the server may have heard enough
		if half {
			_ = c.CloseWrite()
		}
	}()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(c)
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return nil
		}
		if resp.StatusCode != http.StatusContinue {
			b, _ := io.ReadAll(resp.Body)
			resp.Body = io.NopCloser(bytes.NewReader(b))
			return resp
		}
	}
}

// request spells a request; a header "-Name" takes that one out.
func (s *site) request(method, target string, content []byte, headers ...string) []byte {
	h := map[string]string{"Host": "mx2.example.org", "Authorization": "Bearer " + s.token, "Content-Length": fmt.Sprint(len(content)), "Connection": "close"}
	var extra []string
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		if without, out := strings.CutPrefix(name, "-"); out {
			delete(h, without)
		} else if _, there := h[name]; there {
			h[name] = value
		} else {
			extra = append(extra, line)
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", method, target)
	for k, v := range h {
		fmt.Fprintf(&b, "%s: %s\r\n", k, v)
	}
	for _, line := range extra {
		b.WriteString(line + "\r\n")
	}
	b.WriteString("\r\n")
	b.Write(content)
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b)
	_ = z.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	z, _ := zstd.NewWriter(nil)
	return z.EncodeAll(b, nil)
}

// zstWindow is zst with a window of that size.
func zstWindow(b []byte, size int) []byte {
	var out bytes.Buffer
	z, _ := zstd.NewWriter(&out, zstd.WithWindowSize(size))
	_, _ = z.Write(b[:len(b)/2])
	_ = z.Flush()
	_, _ = z.Write(b[len(b)/2:])
	_ = z.Close()
	return out.Bytes()
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return "Content-Digest: sha-256=:" + base64.StdEncoding.EncodeToString(h[:]) + ":"
}

func chunked(parts ...string) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(p), p)
	}
	return b.Bytes()
}

type attack struct {
	name string
	raw  []byte
	want int
	half bool // the client hangs up after it
}

// attacks are requests that must change nothing.
func (s *site) attacks() []attack {
	const at = prefix + domain
	nine := []byte(strings.Join(users(9), "\n") + "\n")
	put := func(content []byte, h ...string) []byte { return s.request("PUT", at, content, h...) }
	to := func(target string) []byte { return s.request("PUT", target, nine) }
	line := func(text string) []byte { return put(append(slices.Clone(nine), text+"\n"...)) }
	json := func(text string) []byte { return put([]byte(text), "Content-Type: application/json") }
	patch := func(text string, h ...string) []byte {
		return s.request("PATCH", at, []byte(text), append([]string{"Content-Type: application/json"}, h...)...)
	}
	match := `If-Match: "` + s.etag + `"`
	open := func(method, body string, h ...string) []byte {
		return append(s.request(method, at, nil, append(h, "-Content-Length: ", "Transfer-Encoding: chunked")...), body...)
	}
	bomb := bytes.Repeat([]byte("u@example.org\n"), 200_000)
	return []attack{
		{"no token", put(nine, "-Authorization: "), 401, false},
		{"wrong token", put(nine, "Authorization: Bearer "+strings.Repeat("A", 43)), 401, false},
		{"empty token", put(nine, "Authorization: Bearer "), 401, false},
		{"token's hash", put(nine, "Authorization: Bearer "+func() string { h := sha256.Sum256([]byte(s.token)); return fmt.Sprintf("%x", h) }()), 401, false},
		{"another domain's token", put(nine, "Authorization: Bearer "+s.other), 401, false},
		{"our token, another domain", to(prefix + "example.net"), 401, false},
		{"token alone", put(nine, "Authorization: "+s.token), 401, false},
		{"CONNECT to the domain", s.request("CONNECT", domain, nil), 405, false},
		{"basic", put(nine, "Authorization: Basic "+s.token), 401, false},
		{"token twice", s.request("PUT", at, nil, "authorization: Bearer "+s.other), 401, false},
		{"token in the target", s.request("PUT", at+"?token="+s.token, nine, "-Authorization: "), 401, false},
		{"unknown domain", to(prefix + "example.com"), 401, false},
		{"dot dot", to(prefix + "../recipients/" + domain), 401, false},
		{"dot dot, escaped", to(prefix + "%2e%2e/recipients/" + domain), 401, false},
		{"escaped", to(prefix + "%65xample.org"), 401, false},
		{"double slash", to("/v1//recipients/" + domain), 401, false},
		{"upper case", to(prefix + "EXAMPLE.ORG"), 401, false},
		{"trailing dot", to(at + "."), 401, false},
		{"trailing slash", to(at + "/"), 401, false},
		{"NUL in the path", to(at + "%00"), 401, false},
		{"a file's name", to(at + ".json"), 401, false},
		{"IDN", to(prefix + "ex%C3%A4mple.org"), 401, false},
		{"query", to(at + "?x=1"), 401, false},
		{"absolute form", to("https://mx2.example.org" + at), 401, false},
		{"POST", s.request("POST", at, nine), 405, false},
		{"DELETE", s.request("DELETE", at, nil), 405, false},
		{"old ETag", put(nine, `If-Match: "`+pushed.ETag(nil)+`"`), 412, false},
		{"weak ETag", put(nine, `If-Match: W/"`+s.etag+`"`), 412, false},
		{"list of ETags", put(nine, `If-Match: "x", "`+s.etag+`"`), 412, false},
		{"If-Match twice", put(nine, match, match), 400, false},
		{"Content-Type twice", put(nine, "Content-Type: text/plain", "Content-Type: application/json"), 400, false},
		{"Content-Encoding twice", put(gz(gz(nine)), "Content-Encoding: gzip", "Content-Encoding: gzip"), 400, false},
		{"two lengths", put(nine, "Content-length: 5"), 400, false},
		{"length and chunks", append(s.request("PUT", at, nil, "Transfer-Encoding: chunked", "Content-Length: 5"), append(chunked(string(nine)), "0\r\n\r\n"...)...), 411, false},
		{"chunked, no digest", open("PUT", string(chunked(string(nine)))+"0\r\n\r\n"), 411, false},
		{"chunked and cut off", open("PUT", string(chunked(string(nine))), sum(nine)), 422, true},
		{"chunked, closed early", open("PUT", string(chunked(string(nine[:40])))+"0\r\n\r\n", sum(nine)), 422, false},
		{"announced trailer doesn't come", open("PUT", string(chunked(string(nine)))+"0\r\n\r\n", "Trailer: Content-Digest"), 422, false},
		{"wrong trailer", open("PUT", string(chunked(string(nine)))+"0\r\n"+sum(nil)+"\r\n\r\n", "Trailer: Content-Digest"), 422, false},
		{"another trailer", open("PUT", string(chunked(string(nine)))+"0\r\nX-A: b\r\n\r\n", "Trailer: X-A"), 422, false},
		{"shorter than its length", put(nine, fmt.Sprintf("Content-Length: %d", len(nine)+5)), 422, true},
		{"wrong digest", put(nine, sum(nil)), 422, false},
		{"digest of another kind", put(nine, "Content-Digest: md5=:AAAA:"), 422, false},
		{"digest of what is unpacked", put(gz(nine), "Content-Encoding: gzip", sum(nine)), 422, false},
		{"gzip cut off", put(gz(nine)[:40], "Content-Encoding: gzip"), 422, false},
		{"gzip and more", put(append(gz(nine), "junk"...), "Content-Encoding: gzip"), 422, false},
		{"no gzip at all", put(nine, "Content-Encoding: gzip"), 422, false},
		{"zstd cut off", put(zst(nine)[:20], "Content-Encoding: zstd"), 422, false},
		{"gzip bomb", put(gz(bomb), "Content-Encoding: gzip"), 413, false},
		{"zstd bomb", put(zst(bomb), "Content-Encoding: zstd"), 413, false},
		{"bomb of blank lines", put(gz(bytes.Repeat([]byte("\n"), 8<<20)), "Content-Encoding: gzip"), 413, false},
		{"gzip in gzip", put(gz(gz(nine)), "Content-Encoding: gzip, gzip"), 415, false},
		{"br", put(nine, "Content-Encoding: br"), 415, false},
		{"empty", put(nil), 422, false},
		{"blank lines", put([]byte("\n\r\n\n")), 422, false},
		{"too many", put([]byte(strings.Join(users(1001), "\n"))), 413, false},
		{"endless line", line(strings.Repeat("a", 1<<20)), 422, false},
		{"long address", line(strings.Repeat("a", 400) + "@example.org"), 422, false},
		{"other domain", line("a@example.net"), 422, false},
		{"subdomain", line("a@sub.example.org"), 422, false},
		{"domain with a dot", line("a@example.org."), 422, false},
		{"two domains", line("a@example.org@example.net"), 422, false},
		{"catch-all", line("@example.org"), 422, false},
		{"NUL", line("a\x00b@example.org"), 422, false},
		{"CR", line("a\rb@example.org"), 422, false},
		{"quoted line end", line("\"a\\\r\"@example.org"), 422, false},
		{"tab", line("a\tb@example.org"), 422, false},
		{"comment", line("#a@example.org"), 422, false},
		{"bad UTF-8", line("\xff@example.org"), 422, false},
		{"source route", line("@x:a@example.org"), 422, false},
		{"brackets", line("<a@example.org>"), 422, false},
		{"HTML", put([]byte("<html>login</html>\n")), 422, false},
		{"JSON as text", put([]byte(`{"recipients": ["a@example.org"]}`)), 422, false},
		{"XML", put(nine, "Content-Type: application/xml"), 415, false},
		{"JSON cut off", json(`{"recipients": ["a@example.org"`), 422, false},
		{"JSON and more", json(`{"recipients": ["a@example.org"]} {}`), 422, false},
		{"JSON, key twice", json(`{"recipients": ["a@example.org"], "recipients": ["b@example.org"]}`), 422, false},
		{"JSON, other key", json(`{"recipients": ["a@example.org"], "admin": true}`), 422, false},
		{"JSON, no strings", json(`{"recipients": [1]}`), 422, false},
		{"JSON, null", json(`{"recipients": null}`), 422, false},
		{"JSON, an escape", json(`{"recipients": ["a\u000ab@example.org"]}`), 422, false},
		{"JSON, deep", json(`{"recipients": ` + strings.Repeat("[", 1000)), 422, false},
		{"JSON, a huge token", json(`{"recipients": ["` + strings.Repeat("a", 900_000) + `"]}`), 422, false},
		{"PATCH without If-Match", patch(`{"removed": ["u0000001@example.org"]}`), 428, false},
		{"PATCH of any", patch(`{"removed": ["u0000001@example.org"]}`, "If-Match: *"), 428, false},
		{"PATCH of an old list", patch(`{"removed": ["u0000001@example.org"]}`, `If-Match: "`+pushed.ETag(nil)+`"`), 412, false},
		{"PATCH of too many", patch(`{"added": [`+strings.Repeat(`"u0000001@example.org",`, pushed.MaxChange)+`"u0000001@example.org"]}`, match), 413, false},
		{"PATCH as text", s.request("PATCH", at, nine, match), 415, false},
		{"PATCH, other domain", patch(`{"added": ["a@example.net"]}`, match), 422, false},
		{"PATCH, both", patch(`{"added": ["a@example.org"], "removed": ["a@example.org"]}`, match), 422, false},
		{"PATCH, all go", patch(`{"removed": ["`+strings.Join(users(10), `","`)+`"]}`, match), 422, false},
		{"PATCH cut off", patch(`{"removed": ["u0000001@example.org"`, match), 422, false},
		{"PATCH, key twice", patch(`{"added": [], "added": ["a@example.org"]}`, match), 422, false},
		{"PATCH, wrong digest", patch(`{"added": ["a@example.org"]}`, match, sum(nil)), 422, false},
		{"smuggled behind a body", append(put([]byte("bad\n"), "Connection: keep-alive"), put(nine)...), 422, false},
		{"smuggled behind a refusal", append(put(nine, "Authorization: Bearer x", "Connection: keep-alive"), put(nine)...), 401, false},
		{"chunk size with a sign", open("PUT", "+28\r\n"+string(nine[:40])+"\r\n0\r\n\r\n", sum(nine)), 422, false},
		{"chunk of a huge size", open("PUT", "ffffffffffffffff\r\n", sum(nine)), 422, true},
		{"negative length", put(nine, "Content-Length: -1"), 400, false},
		{"length with a sign", put(nine, "Content-Length: +5"), 400, false},
		{"two transfer codings", open("PUT", "", "Transfer-Encoding: gzip, chunked"), 501, false},
		{"space before the colon", put(nine, "Content-Length : 5"), 400, false},
		{"folded header", put(nine, "-Authorization: ", "X-A: b\r\n Authorization: Bearer "+s.token), 401, false},
		{"bare LF", bytes.ReplaceAll(put(nine, "-Authorization: "), []byte("\r\n"), []byte("\n")), 401, false},
		{"token of another case", put(nine, "Authorization: bearer "+s.token), 401, false},
		{"token and a tab", put(nine, "Authorization: Bearer \t"+s.token), 401, false},
		{"token cut short", put(nine, "Authorization: Bearer "+s.token[:42]), 401, false},
		{"two tokens", put(nine, "Authorization: Bearer "+s.other+", Bearer "+s.token), 401, false},
		{"method override", s.request("POST", at, nine, "X-HTTP-Method-Override: PUT"), 405, false},
		{"upgrade to h2c", s.request("POST", at, nine, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), 405, false},
		{"CONNECT", s.request("CONNECT", "mx2.example.org:25", nil), 401, false},
		{"OPTIONS *", s.request("OPTIONS", "*", nil), 401, false},
		{"backslash", to("/v1\\recipients\\" + domain), 401, false},
		{"IDN as A-label of another", to(prefix + "xn--exmple-cua.org"), 401, false},
		{"full-width letters", line("a@ｅxample.org"), 422, false},
		{"dotless i, folded", line("a@exampl\u0131.org"), 422, false},
		{"Kelvin sign, folded", line("a@example.or\u212a"), 422, false},
		{"ETag with its first quote alone", put(nine, `If-Match: "`+s.etag), 412, false},
		{"ETag with its last quote alone", put(nine, `If-Match: `+s.etag+`"`), 412, false},
		{"ETag without quotes", put(nine, "If-Match: "+s.etag), 412, false},
		{"ETag in upper case", put(nine, `If-Match: "`+strings.ToUpper(pushed.ETag(nil))+`"`), 412, false},
		{"star and ETag", put(nine, `If-Match: *, "`+s.etag+`"`), 412, false},
		{"If-None-Match twice", put(nine, "If-None-Match: *", "If-None-Match: *"), 400, false},
		{"zstd with a huge window", put([]byte("\x28\xb5\x2f\xfd\x00\xd0\x01\x00\x00"), "Content-Encoding: zstd"), 422, false},
		{"zstd with a window of 16 MiB", put(zstWindow(nine, 16<<20), "Content-Encoding: zstd"), 422, false},
		{"zstd with a dictionary", put([]byte("\x28\xb5\x2f\xfd\x03\x58\x01\x02\x03\x04\x01\x00\x00"), "Content-Encoding: zstd"), 422, false},
		{"many gzip members", put(bytes.Repeat(gz(bytes.Repeat([]byte("\n"), 4000)), 400), "Content-Encoding: gzip"), 413, false},
		{"gzip members of nothing", put(bytes.Repeat(gz(nil), 60_000), "Content-Encoding: gzip"), 413, false},
		{"JSON, key twice by an escape", json(`{"recipients": ["a@example.org"], "r\u0065cipients": ["b@example.org"]}`), 422, false},
		{"JSON, key of another case", json(`{"Recipients": ["a@example.org"]}`), 422, false},
		{"JSON, bad UTF-8", json("{\"recipients\": [\"a\xff@example.org\"]}"), 422, false},
		{"JSON, half a surrogate", json(`{"recipients": ["\ud800@example.org"]}`), 422, false},
		{"JSON, NaN", json(`{"recipients": [NaN]}`), 422, false},
		{"JSON with a BOM", json("\ufeff" + `{"recipients": ["a@example.org"]}`), 422, false},
		{"BOM in the middle", line("\ufeffa@example.org"), 422, false},
		{"two BOMs", put(append([]byte("\ufeff\ufeff"), nine...)), 422, false},
		{"UTF-16", put([]byte("a\x00@\x00e\x00")), 422, false},
		{"line separators", line("a@example.org\u2028b@example.org"), 422, false},
		{"huge header", put(nine, "X-A: "+strings.Repeat("a", 64<<10)), 431, false},
		{"part of a list", put(nine, "Content-Range: bytes 0-143/200"), 400, false}, // curl -C does so
		{"part of a list, nothing after it", put(nine, "Content-Range: bytes 0-143/144"), 400, false},
		{"only if there is none", put(nine, "If-None-Match: *"), 400, false},
		{"only if it isn't that one", put(nine, `If-None-Match: "`+s.etag+`"`), 400, false},
		{"digest in the header and in the trailer", open("PUT", string(chunked(string(nine)))+"0\r\n"+sum(nil)+"\r\n\r\n", sum(nine), "Trailer: Content-Digest"), 422, false},
		{"two digests of a kind", put(nine, sum(nine)+", "+strings.TrimPrefix(sum(nil), "Content-Digest: ")), 422, false},
		{"two digests, the wrong one first", put(nine, sum(nil)+", "+strings.TrimPrefix(sum(nine), "Content-Digest: ")), 422, false},
		{"half a digest", put(nine, sum(nine)[:60]), 422, false},
		{"another digest in the trailer", open("PUT", string(chunked(string(nine)))+"0\r\nDigest: x\r\n\r\n", "Trailer: Digest"), 422, false},
		{"a token in the trailer", open("PUT", string(chunked(string(nine)))+"0\r\nAuthorization: Bearer "+s.token+"\r\n\r\n", "-Authorization: ", "Trailer: Authorization"), 401, false},
		{"a length in the trailer", open("PUT", string(chunked(string(nine)))+"0\r\nContent-Length: 5\r\n\r\n", "Trailer: Content-Length"), 400, false},
		{"huge trailer", open("PUT", string(chunked(string(nine)))+"0\r\nX-A: "+strings.Repeat("a", 64<<10)+"\r\n\r\n", "Trailer: Content-Digest"), 422, false},
		{"huge chunk extension", open("PUT", "28;x="+strings.Repeat("a", 64<<10)+"\r\n"+string(nine[:40])+"\r\n0\r\n\r\n", sum(nine[:40])), 422, false},
		{"chunk ends with LF", open("PUT", "5\n"+string(nine[:5])+"\r\n0\r\n\r\n", sum(nine)), 422, false},
		{"no last chunk", open("PUT", string(chunked(string(nine))), sum(nine)), 422, true},
		{"transfer coding spelt otherwise", open("PUT", string(chunked(string(nine)))+"0\r\n\r\n", sum(nine), "Transfer-Encoding: xchunked"), 501, false},
		{"two transfer codings, one a field", open("PUT", string(chunked(string(nine)))+"0\r\n\r\n", sum(nine), "Transfer-encoding: chunked"), 501, false},
		{"HTTP/1.0 without a length", bytes.Replace(s.request("PUT", at, nil, "-Content-Length: "), []byte("HTTP/1.1"), []byte("HTTP/1.0"), 1), 422, false},
		{"HTTP/1.0 in chunks", bytes.Replace(open("PUT", string(chunked(string(nine)))+"0\r\n\r\n"), []byte("HTTP/1.1"), []byte("HTTP/1.0"), 1), 422, false},
		{"HTTP/3.0", bytes.Replace(put(nine), []byte("HTTP/1.1"), []byte("HTTP/3.0"), 1), 505, false},
		{"a length that is none", put(nine, "Content-Length: 0x90"), 400, false},
		{"a length of 1 EiB", put(nine, "Content-Length: 1152921504606846976"), 422, true},
		{"expects something else", put(nine, "Expect: 200-ok"), 417, false},
		{"waits for 100, without a token", put(nil, "Authorization: Bearer x", "Expect: 100-continue", "Content-Length: 144"), 401, false},
		{"no host", put(nine, "-Host: "), 400, false},
		{"two hosts", put(nine, "host: other.example.org"), 400, false},
		{"lower-case method", s.request("put", at, nine), 405, false},
		{"TRACE", s.request("TRACE", at, nil), 405, false},
		{"HEAD", s.request("HEAD", at, nil), 405, false},
		{"a method with a NUL", s.request("PUT\x00", at, nine), 400, false},
		{"semicolon", to(at + ";x=1"), 401, false},
		{"empty query", to(at + "?"), 401, false},
		{"fragment", to(at + "#"), 401, false},
		{"escaped dot", to(prefix + "example%2eorg"), 401, false},
		{"escaped slash", to("/v1/recipients%2f" + domain), 401, false},
		{"octets beyond ASCII in the path", to(prefix + "ex\xc3\xa4mple.org"), 401, false},
		{"mixed case", to(prefix + "Example.org"), 401, false},
		{"two domains in the path", to(at + "," + "example.net"), 401, false},
		{"another address in the target", s.request("PUT", "https://"+s.addr+at, nine), 401, false},
		{"the right path in another field", s.request("PUT", prefix+"example.net", nine, "X-Original-URL: "+at, "X-Rewrite-URL: "+at), 401, false},
		{"multipart", put(nine, "Content-Type: multipart/form-data; boundary=x"), 415, false},
		{"UTF-16 by its name", put([]byte("\xfe\xff\x00a\x00@"), "Content-Type: text/plain; charset=utf-16"), 422, false},
		{"a kind with its parameter twice", put(nine, "Content-Type: text/plain; charset=a; charset=b"), 415, false},
		{"x-gzip", put(gz(nine), "Content-Encoding: x-gzip"), 415, false},
		{"deflate", put(nine, "Content-Encoding: deflate"), 415, false},
		{"gzip of nothing", put(gz(nil), "Content-Encoding: gzip"), 422, false},
		{"gzip with a wrong sum", put(func() []byte { z := gz(nine); z[len(z)-6] ^= 1; return z }(), "Content-Encoding: gzip"), 422, false},
		{"gzip with a wrong length", put(func() []byte { z := gz(nine); z[len(z)-1] ^= 1; return z }(), "Content-Encoding: gzip"), 422, false},
		{"gzip with an endless name", put(append([]byte("\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x03"), strings.Repeat("a", 100_000)...), "Content-Encoding: gzip"), 422, false},
		{"gzip, its second member cut off", put(append(gz(nine), gz(nine)[:20]...), "Content-Encoding: gzip"), 422, false},
		{"zstd with a wrong sum", put(func() []byte { z := zst(nine); z[len(z)-1] ^= 1; return z }(), "Content-Encoding: zstd"), 422, false},
		{"zstd of 1 EiB by its header", put([]byte("\x28\xb5\x2f\xfd\xe0\x00\x00\x00\x00\x00\x00\x00\x10\x01\x00\x00"), "Content-Encoding: zstd"), 422, false},
		{"zstd of frames that are skipped", put(bytes.Repeat([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"), 1000), "Content-Encoding: zstd"), 422, false},
		{"zstd, its second frame cut off", put(append(zst(nine), zst(nine)[:12]...), "Content-Encoding: zstd"), 422, false},
		{"JSON array", json(`["a@example.org"]`), 422, false},
		{"JSON, a comma too many", json(`{"recipients": ["a@example.org",]}`), 422, false},
		{"JSON, a comma too few", json(`{"recipients": ["a@example.org" "b@example.org"]}`), 422, false},
		{"JSON, none", json(`{"recipients": []}`), 422, false},
		{"JSON, nothing", json(`{"recipients": [""]}`), 422, false},
		{"JSON with a comment", json(`{"recipients": ["a@example.org"] /* all */}`), 422, false},
		{"JSON and a NUL", json("{\"recipients\": [\"a@example.org\"]}\x00"), 422, false},
		{"JSON, deep in an object", json(strings.Repeat(`{"recipients":`, 5000)), 422, false},
		{"JSON, an object of strings", json(`{"recipients": {"a@example.org": "b@example.org"}}`), 422, false},
		{"JSON, a list of a key and a list", json(`["recipients", ["a@example.org"]]`), 422, false},
		{"PATCH, a list of a key and a list", patch(`["added", ["a@example.org"]]`, match), 422, false},
		{"PATCH, an object of strings", patch(`{"added": {"a@example.org": "b@example.org"}}`, match), 422, false},
		{"digest twice in the trailer", open("PUT", string(chunked(string(nine)))+"0\r\n"+sum(nine)+"\r\n"+sum(nil)+"\r\n\r\n", "Trailer: Content-Digest"), 422, false},
		{"JSON, PATCH's keys", json(`{"added": ["a@example.org"], "removed": []}`), 422, false},
		{"JSON, two addresses in a string", json(`{"recipients": ["a@example.org\nb@example.org"]}`), 422, false},
		{"PATCH, both, in another case", patch(`{"added": ["A@EXAMPLE.ORG"], "removed": ["a@example.org"]}`, match), 422, false},
		{"PATCH, null", patch(`{"added": null}`, match), 422, false},
		{"PATCH, a string", patch(`{"added": "a@example.org"}`, match), 422, false},
		{"PATCH, PUT's key", patch(`{"recipients": ["a@example.org"]}`, match), 422, false},
		{"PATCH of part", patch(`{"added": ["a@example.org"]}`, match, "Content-Range: bytes 0-10/20"), 400, false},
		{"PATCH, weak", patch(`{"added": ["a@example.org"]}`, `If-Match: W/"`+s.etag+`"`), 412, false},
		{"PATCH, too many", patch(`{"added": ["`+strings.Join(users(pushed.MaxChange+1), `","`)+`"]}`, match), 413, false},
		{"PATCH, more than a list has", patch(`{"added": ["`+strings.Join(users(1001), `","`)+`"]}`, match), 413, false},
		{"CSV", line("a@example.org,Alice"), 422, false},
		{"a comment after an address", line("a@example.org # Alice"), 422, false},
		{"mailto", line("mailto:a@example.org"), 422, false},
		{"a name and an address", line("Alice <a@example.org>"), 422, false},
		{"right to left", line("a\u202eb@example.org"), 422, false},
		{"zero-width space", line("a\u200bb@example.org"), 422, false},
		{"soft hyphen", line("a\u00adb@example.org"), 422, false},
		{"overlong UTF-8", line("a\xc0\xafb@example.org"), 422, false},
		{"surrogate in UTF-8", line("a\xed\xa0\x80b@example.org"), 422, false},
		{"escape sequence", line("\x1b[2Ja@example.org"), 422, false},
		{"space before", line(" a@example.org"), 422, false},
		{"space after", line("a@example.org "), 422, false},
		{"domain literal", line("a@[192.0.2.1]"), 422, false},
		{"A-label of the domain", line("a@xn--example-.org"), 422, false},
		{"no HTTP", []byte("EHLO example.org\r\n\r\n"), 400, false},
		{"HTTP/2", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 401, false},
	}
}

// TestAttacks sends what must not change the list.
func TestAttacks(t *testing.T) {
	s := start(t, 1000)
	name := filepath.Join(s.dir, pushed.ListName(domain))
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range s.attacks() {
		t.Run(a.name, func(t *testing.T) {
			got := s.raw(t, a.raw, a.half)
			if got != a.want && !(a.half && got == 0) {
				t.Errorf("answered %d, want %d", got, a.want)
			}
			after, err := os.ReadFile(name)
			if err != nil || !bytes.Equal(before, after) {
				t.Fatalf("the list has changed: %v", err)
			}
			files, _ := filepath.Glob(filepath.Join(s.dir, "*"))
			for _, f := range files {
				if base := filepath.Base(f); !strings.HasPrefix(base, domain+".") && !strings.HasPrefix(base, "example.net.json") {
					t.Errorf("there is a file %s", f)
				}
			}
		})
	}
}

// TestEachRequest: a client that is known on a connection isn't known for its next request.
func TestEachRequest(t *testing.T) {
	s := start(t, 1000)
	c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(append(s.request("GET", prefix+domain, nil, "Connection: keep-alive"), s.request("PUT", prefix+domain, []byte(users(9)[0]), "-Authorization: ")...)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for _, want := range []int{200, 401} {
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%v, %v; want %d", resp, err, want)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := s.store.One(domain); err != nil || st.ETag != s.etag {
		t.Errorf("%+v, %v", st, err)
	}
	for _, config := range []*tls.Config{{RootCAs: s.roots, NextProtos: []string{"h2"}}, {RootCAs: s.roots, MaxVersion: tls.VersionTLS11}} {
		if c, err := tls.Dial("tcp", s.addr, config); err == nil {
			c.Close()
			t.Errorf("HTTP/2 or an old TLS is spoken: %+v", c.ConnectionState())
		}
	}
}

// TestOneToken: whoever has one domain's token, and sends slowly, keeps another domain's
// list out for no moment.
func TestOneToken(t *testing.T) {
	s := start(t, 1000)
	answers := make(chan int, maxLists)
	for range maxLists {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(s.request("PATCH", prefix+domain, []byte("{"), "Content-Type: application/json", `If-Match: "`+s.etag+`"`, "Content-Length: 100")); err != nil {
			t.Fatal(err)
		}
		go func() {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
				answers <- resp.StatusCode
			} else {
				answers <- 0 // at the test's end, or too late
			}
		}()
	}
	for range maxLists - 1 { // one is being received
		if got := <-answers; got != 429 {
			t.Fatalf("answered %d", got)
		}
	}
	if got := s.raw(t, s.request("PUT", prefix+"example.net", []byte("a@example.net"), "Authorization: Bearer "+s.other), false); got != 200 {
		t.Fatalf("answered %d", got)
	}
}

// TestGood has every form that a list may come in.
func TestGood(t *testing.T) {
	s := start(t, 1000)
	const at = prefix + domain
	nine := []byte(strings.Join(users(9), "\r\n"))
	for _, tt := range []struct {
		name string
		raw  []byte
		want int
	}{
		{"text", s.request("PUT", at, nine), 200},
		{"again", s.request("PUT", at, nine, sum(nine)), 200},
		{"with a BOM", s.request("PUT", at, append([]byte("\ufeff"), nine...)), 200},
		{"gzip", s.request("PUT", at, gz(nine), "Content-Encoding: gzip", sum(gz(nine))), 200},
		{"zstd", s.request("PUT", at, zst(nine), "Content-Encoding: zstd"), 200},
		{"zstd with a window of 8 MiB", s.request("PUT", at, zstWindow(nine, 8<<20), "Content-Encoding: zstd"), 200},
		{"JSON", s.request("PUT", at, []byte(`{"recipients": ["`+strings.Join(users(9), `","`)+`"]}`), "Content-Type: application/json; charset=utf-8"), 200},
		{"chunked with a trailer", append(s.request("PUT", at, nil, "-Content-Length: ", "Transfer-Encoding: chunked", "Trailer: Content-Digest"), string(chunked(string(nine[:50]), string(nine[50:])))+"0\r\n"+sum(nine)+"\r\n\r\n"...), 200},
		{"If-Match", s.request("PUT", at, nine, `If-Match: "`+pushed.ETag(users(9))+`"`), 200},
		{"confirm", s.request("PATCH", at, []byte("{}"), "Content-Type: application/json", `If-Match: "`+pushed.ETag(users(9))+`"`), 200},
		{"GET", s.request("GET", at, nil), 200},
		{"a long change", s.request("PATCH", at, gz([]byte(`{"added": ["`+strings.Repeat(`u0000001@example.org","`, 60_000)+`u0000002@example.org"], "removed": []}`)),
			"Content-Type: application/json", "Content-Encoding: gzip", `If-Match: "`+pushed.ETag(users(9))+`"`), 200},
		{"mass deletion", s.request("PUT", at, []byte(strings.Join(users(2), "\n"))), 202},
		{"and back", s.request("PATCH", at, []byte(`{"added": ["`+strings.Join(users(9), `","`)+`"]}`), "Content-Type: application/json", `If-Match: "`+pushed.ETag(users(2))+`"`), 200},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := s.raw(t, tt.raw, false); got != tt.want {
				t.Errorf("answered %d, want %d", got, tt.want)
			}
		})
	}
	if st, err := s.store.One(domain); err != nil || st.Count != 9 || st.Staged != nil {
		t.Errorf("in the end %+v, %v", st, err)
	}
}

// TestVerdict: what went wrong is told apart by its code.
func TestVerdict(t *testing.T) {
	for err, want := range map[error]int{
		pushed.ErrUnknown: 404, pushed.ErrETag: 412, pushed.ErrRejected: 409, pushed.ErrBusy: 429, pushed.ErrTooLong: 413, errSize: 413,
		&http.MaxBytesError{Limit: 1}: 413, pushed.ErrContent: 422, errBody: 422, errors.New("the disk is gone"): 500,
	} {
		if got, _ := verdict(nil, fmt.Errorf("list: %w", err)); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

// TestStats: what the metrics say of the lists, of each domain's.
func TestStats(t *testing.T) {
	s := start(t, 1000)
	server := &Server{o: Options{Store: s.store}}
	wants := func(when string, want metrics.PushStats) {
		t.Helper()
		if got := server.stats(); got != want {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	wants("one was pushed, one never", metrics.PushStats{Stale: 1, Recipients: 10})
	if _, err := s.store.Replace(domain, "", func(add func(string) error) error { return addAll(add, users(2)) }); err != nil {
		t.Fatal(err)
	}
	wants("a mass deletion", metrics.PushStats{Stale: 1, Staged: 1, Recipients: 2})
	if _, err := s.store.Replace("example.net", "", func(add func(string) error) error { return add("a@example.net") }); err != nil {
		t.Fatal(err)
	}
	wants("both were pushed", metrics.PushStats{Staged: 1, Recipients: 3})
}

// TestFailed: a list that can't be stored is the server's fault, whose paths are its own.
func TestFailed(t *testing.T) {
	s := start(t, 1000)
	get := s.response(t, s.request("GET", prefix+domain, nil), false)
	if get == nil || get.Header.Get("ETag") != `"`+s.etag+`"` {
		t.Errorf("GET: %+v", get)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	resp := s.response(t, s.request("PUT", prefix+domain, []byte(strings.Join(users(9), "\n"))), false)
	if resp == nil || resp.StatusCode != 500 {
		t.Fatalf("%+v", resp)
	}
	if b, _ := io.ReadAll(resp.Body); string(b) != `{"error":"the list can't be stored now"}`+"\n" {
		t.Errorf("%s", b)
	}
}

// TestTLS: a certificate that is renewed is used from then on, and one that is broken
// isn't. Only TLS 1.2 and later is spoken, and no HTTP/2.
func TestTLS(t *testing.T) {
	s := start(t, 1000)
	state := func() tls.ConnectionState {
		t.Helper()
		c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState()
	}
	first := state()
	if first.NegotiatedProtocol == "h2" {
		t.Error("HTTP/2 is spoken")
	}
	s.roots = writePair(t, s.certs)
	if second := state(); second.PeerCertificates[0].Equal(first.PeerCertificates[0]) {
		t.Error("the certificate was renewed, and the old one is used")
	}
	if err := os.WriteFile(filepath.Join(s.certs, "key"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	state()
	if c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken")
	}
}

// pipes is a listener without a network, whose time is the test's.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// TestPatience: a client that falls silent is given up, sooner before its request than
// within a list.
func TestPatience(t *testing.T) {
	for _, tt := range []struct {
		name string
		tls  bool
		sent func(*site) string
		want time.Duration
	}{
		{"nothing", false, func(*site) string { return "" }, headerTime},
		{"no request", true, func(*site) string { return "" }, headerTime},
		{"half a header", true, func(*site) string { return "PUT " + prefix + domain + " HTTP/1.1\r\nHost: x\r\n" }, headerTime},
		{"half a list", true, func(s *site) string {
			return string(s.request("PUT", prefix+domain, nil, "Content-Length: 100")) + "u0@"
		}, silence},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := make(pipes)
				s := startOn(t, 1000, l)
				c, server := net.Pipe()
				defer c.Close()
				l <- server
				began := time.Now()
				if tt.tls {
					c = tls.Client(c, &tls.Config{RootCAs: s.roots, ServerName: "127.0.0.1"})
				}
				if text := tt.sent(s); tt.tls {
					if _, err := io.WriteString(c, text); err != nil {
						t.Fatal(err)
					}
				}
				_, _ = io.Copy(io.Discard, c)
				if took := time.Since(began); took < tt.want || took > tt.want+6*time.Second {
					t.Errorf("given up after %v, want %v", took, tt.want)
				}
			})
		})
	}
}

// TestShortTokens: JSON that goes on without a quote ends.
func TestShortTokens(t *testing.T) {
	if n, err := io.Copy(io.Discard, &shortTokens{r: io.LimitReader(strings.NewReader(strings.Repeat("a", 1<<20)), 1<<20)}); err == nil || n > 100<<10 {
		t.Errorf("%d octets, %v", n, err)
	}
}

// TestTogether pushes many lists at once: one after the other or not at all.
func TestTogether(t *testing.T) {
	s := start(t, 1000)
	var work sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for i := range 20 {
		work.Go(func() {
			list := append(users(10), fmt.Sprintf("n%d@example.org", i))
			got := s.raw(t, s.request("PUT", prefix+domain, []byte(strings.Join(list, "\n")), `If-Match: "`+s.etag+`"`), false)
			mu.Lock()
			codes[got]++
			mu.Unlock()
		})
	}
	work.Wait()
	if codes[200] != 1 || codes[200]+codes[412]+codes[429] != 20 {
		t.Errorf("of 20 lists made of one before: %v", codes)
	}
	if st, err := s.store.One(domain); err != nil || st.Count != 11 {
		t.Errorf("in the end %+v, %v", st, err)
	}
}

// TestSeats: so many lists are received at a time. Beyond that a client is told when to
// come again, until one of them ends.
func TestSeats(t *testing.T) {
	s := start(t, 1000)
	until := func(want int) *http.Response {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
			if resp := s.response(t, s.request("PATCH", prefix+domain, []byte("{}"), "Content-Type: application/json", `If-Match: "`+pushed.ETag(nil)+`"`), false); resp != nil && resp.StatusCode == want {
				return resp
			}
		}
		t.Fatalf("never answered %d", want)
		return nil
	}
	limits := pushed.Limits{Domains: []string{domain}, MaxEntries: 1000, StaleAfter: time.Hour}
	for n := range maxLists {
		limits.Domains = append(limits.Domains, fmt.Sprintf("d%d.example.org", n))
	}
	if err := s.store.Limit(limits); err != nil {
		t.Fatal(err)
	}
	var all []net.Conn
	for _, other := range limits.Domains[1:] {
		token, err := s.store.NewToken(other, false)
		if err != nil {
			t.Fatal(err)
		}
		until(412)
		c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(s.request("PATCH", prefix+other, []byte("{"), "Authorization: Bearer "+token, "Content-Type: application/json", `If-Match: "`+s.etag+`"`, "Content-Length: 9")); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if after := until(429).Header.Get("Retry-After"); after != "5" {
		t.Errorf("Retry-After: %q", after)
	}
	all[0].Close()
	until(412)
}

// TestSlow leaves requests unfinished: they hold a place until they are given up,
// and the server answers others meanwhile.
func TestSlow(t *testing.T) {
	s := start(t, 1000)
	for _, begin := range []string{"", "PUT " + prefix + domain + " HTTP/1.1\r\nHost: x\r\n", string(s.request("PUT", prefix+domain, nil, "Content-Length: 100")) + "u0@"} {
		for range 10 {
			c, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, begin); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := s.raw(t, s.request("GET", prefix+domain, nil), false); got != 200 {
		t.Errorf("GET answered %d", got)
	}
	if st, err := s.store.One(domain); err != nil || st.ETag != s.etag {
		t.Errorf("half a list counts: %+v, %v", st, err)
	}
}

// TestCrowded: clients without a token that fill all places, from one address or from
// many, keep nobody out; who has shown one keeps its place.
func TestCrowded(t *testing.T) {
	s := start(t, 1000)
	begun, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots})
	if err != nil {
		t.Fatal(err)
	}
	defer begun.Close()
	list := []byte(strings.Join(users(9), "\n"))
	whole := s.request("PUT", prefix+domain, list)
	if _, err := begun.Write(whole[:len(whole)-20]); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; { // until the list is being received
		if begun, _ := filepath.Glob(filepath.Join(s.dir, ".tmp-*")); len(begun) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the list isn't being received")
		}
		runtime.Gosched()
	}
	for i := range 3 * maxConns {
		from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i%100))}}
		if i < maxConns {
			from.LocalAddr = nil
		}
		c, err := from.DialContext(t.Context(), "tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i == maxConns {
			if got := s.raw(t, s.request("GET", prefix+domain, nil), false); got != 200 {
				t.Errorf("after %d silent clients GET answered %d", i, got)
			}
		}
	}
	if got := s.raw(t, s.request("GET", prefix+domain, nil), false); got != 200 {
		t.Errorf("GET answered %d", got)
	}
	if _, err := begun.Write(whole[len(whole)-20:]); err != nil {
		t.Fatal(err)
	}
	if resp, err := http.ReadResponse(bufio.NewReader(begun), nil); err != nil || resp.StatusCode != 200 {
		t.Errorf("the list that was begun: %v, %v", resp, err)
	}
}

// TestCrowd: the oldest of the network with the most goes, none that is busy, and who comes
// when all are busy.
func TestCrowd(t *testing.T) {
	for addr, want := range map[string]string{"192.0.2.1:5": "192.0.2.1/32", "[::ffff:192.0.2.1]:5": "192.0.2.1/32", "[2001:db8:1:2:3::4]:5": "2001:db8:1:2::/64"} {
		if got := network(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got.String() != want {
			t.Errorf("%s is of %v, want %s", addr, got, want)
		}
	}
	l := make(pipes, 10)
	c := &crowd{Listener: l, most: 4}
	enter := func(addr string) (*guest, net.Conn, *guest) {
		us, peer := net.Pipe()
		a, err := netip.ParseAddrPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		g := &guest{Conn: us, crowd: c, from: network(net.TCPAddrFromAddrPort(a))}
		oldest := c.enter(g)
		if oldest != nil {
			oldest.Close()
			oldest.Close() // counts once
		}
		return g, peer, oldest
	}
	a1, _, _ := enter("[2001:db8::1]:1")
	b1, _, _ := enter("192.0.2.1:1")
	a2, _, _ := enter("[2001:db8::2]:1")
	b2, _, gone := enter("[::ffff:192.0.2.1]:1")
	if gone != nil {
		t.Fatal("there is a place, and somebody had to go")
	}
	if _, _, gone = enter("192.0.2.1:2"); gone != b1 {
		t.Error("not the oldest of the network with the most")
	}
	if _, _, gone = enter("[2001:db8::3]:1"); gone != a1 {
		t.Error("not the oldest of those with as many")
	}
	a2.busy(true)
	b2.busy(true)
	if _, _, gone = enter("198.51.100.1:1"); gone == a2 || gone == b2 || gone == nil {
		t.Error("a busy one has to go")
	}
	for _, g := range slices.Clone(c.idle) {
		g.busy(true)
	}
	if g, _, gone := enter("198.51.100.2:1"); gone != g {
		t.Error("who comes when all are busy stays")
	}
	a2.busy(false)
	if _, _, gone := enter("198.51.100.3:1"); gone != a2 {
		t.Error("who isn't busy any more stays")
	}
	if c.count != 4 {
		t.Errorf("%d are counted", c.count)
	}
	us, peer := net.Pipe()
	l <- us
	full := &crowd{Listener: l, most: 1}
	if _, err := full.Accept(); err != nil {
		t.Fatal(err)
	}
	us2, _ := net.Pipe()
	l <- us2
	if g, err := full.Accept(); err != nil || g.(*guest).Conn != us2 {
		t.Error(err)
	}
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the oldest wasn't closed: %v", err)
	}
}

// TestRun: a list that nobody confirms is marked when its time is over.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startOn(t, 1000, make(pipes))
		ctx, stop := context.WithCancel(t.Context())
		server, err := New(Options{Store: s.store, TLSCert: filepath.Join(s.certs, "cert"), TLSKey: filepath.Join(s.certs, "key"),
			Log: slog.New(slog.DiscardHandler), Metrics: metrics.New(prometheus.NewRegistry())})
		if err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		work.Go(func() { _ = server.Run(ctx) })
		for _, unsure := range []bool{false, true} {
			time.Sleep(time.Hour - time.Minute)
			synctest.Wait()
			if _, err := os.Stat(filepath.Join(s.dir, pushed.UnsureName(domain))); (err == nil) != unsure {
				t.Errorf("unsure %v, want %v", err == nil, unsure)
			}
		}
		stop()
		work.Wait()
	})
}

func (s *site) client() *Client {
	return &Client{URL: "https://" + s.addr, Token: s.token, Roots: s.roots, Tries: 3, Wait: func(context.Context, time.Duration) error { return nil }}
}

func TestClient(t *testing.T) {
	s := start(t, 1000)
	push := func(list, before []string, want string) {
		t.Helper()
		a, sent, err := s.client().Push(t.Context(), domain, list, before)
		if err != nil || sent != want || a.ETag != pushed.ETag(list) {
			t.Errorf("%d before %d: %s, %+v, %v; want %s", len(list), len(before), sent, a, err, want)
		}
	}
	push(users(10), nil, "confirmed")
	push(users(12), nil, "PUT")
	push(users(13), users(12), "PATCH")
	push(users(14), users(12), "PUT") // the server has another one
	push(users(500), users(14), "PUT")
	even := append([]string{"abc@example.org"}, users(48)...)
	if n := len(strings.Join(even, "\n") + "\n"); n != 1024 {
		t.Fatalf("%d octets", n)
	}
	push(even, nil, "PUT") // it isn't compressed yet
	push(users(500), nil, "PUT")
	stranger := s.client()
	stranger.Roots = x509.NewCertPool()
	if _, _, err := stranger.Push(t.Context(), domain, users(500), nil); err == nil {
		t.Error("it talks to a server whose certificate isn't good")
	}
	if _, _, err := s.client().Push(t.Context(), "example.net", []string{"a@example.net"}, nil); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without its token: %v", err)
	}
	for text, want := range map[string]string{"": "empty", "# nothing\n": "empty", "a@example.net\n": "line 1", "a@example.org\n\nx\n": "line 3"} {
		if _, err := ReadList(strings.NewReader(text), domain); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a list %q: %v, want %s", text, err, want)
		}
	}
}

// front is a server whose first answers to GET are those codes, and then ETag's of before.
func (s *site) front(t *testing.T, codes []int, before []string, answer func(w http.ResponseWriter, r *http.Request)) (c *Client, gets *int) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(s.certs, "cert"), filepath.Join(s.certs, "key"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}})
	if err != nil {
		t.Fatal(err)
	}
	gets = new(int)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if *gets++; r.Method == http.MethodGet && *gets <= len(codes) {
			w.Header().Set("Location", "/elsewhere")
			if code := codes[*gets-1]; code > 1000 { // with so many seconds
				w.Header().Set("Retry-After", fmt.Sprint(code/1000))
				w.WriteHeader(code % 1000)
			} else {
				w.WriteHeader(code)
			}
			return
		}
		if r.Method == http.MethodGet {
			fmt.Fprintf(w, `{"etag": %q, "count": 10}`, pushed.ETag(before))
			return
		}
		answer(w, r)
	})}
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() { server.Close(); work.Wait() })
	c = s.client()
	c.URL = "https://" + l.Addr().String()
	return c, gets
}

// TestClientTries has a server that fails before it succeeds, or for good.
func TestClientTries(t *testing.T) {
	s := start(t, 1000)
	for _, tt := range []struct {
		name  string
		codes []int // of the first answers
		tries int   // made
		ok    bool
	}{
		{"503 twice", []int{503, 503}, 3, true},
		{"412", []int{412}, 2, true},
		{"429", []int{429}, 2, true},
		{"408", []int{408}, 2, true},
		{"500 for ever", []int{500, 500, 500, 500}, 3, false},
		{"401", []int{401}, 1, false},
		{"422", []int{422}, 1, false},
		{"302", []int{302}, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			confirmed := 0
			c, gets := s.front(t, tt.codes, users(10), func(w http.ResponseWriter, r *http.Request) {
				confirmed++
				b, _ := io.ReadAll(r.Body)
				if got := "Content-Digest: " + r.Header.Get("Content-Digest"); r.Method != http.MethodPatch || got != sum(b) {
					t.Errorf("%s of %s with %s", r.Method, b, got)
				}
				fmt.Fprintf(w, `{"etag": %q, "count": 10}`, pushed.ETag(users(10)))
			})
			_, _, err := c.Push(t.Context(), domain, users(10), nil)
			if (err == nil) != tt.ok || *gets-confirmed != tt.tries || (confirmed == 1) != tt.ok {
				t.Errorf("%d tries, %d confirmations, %v; want %d", *gets-confirmed, confirmed, err, tt.tries)
			}
		})
	}
}

// TestClientWaits: it waits as long as the server says, within reason, else longer each time.
func TestClientWaits(t *testing.T) {
	s := start(t, 1000)
	c, _ := s.front(t, []int{5429, 3600503, 503, 503, 503, 503, 503, 503, 503, 503}, nil, nil)
	var waits []string
	c.Tries = 9
	c.Wait = func(_ context.Context, d time.Duration) error { waits = append(waits, d.String()); return nil }
	var said []string
	c.Say = func(text string) { said = append(said, text) }
	if _, _, err := c.Push(t.Context(), domain, users(10), nil); err == nil || strings.Join(waits, " ") != "5s 1m0s 4s 8s 16s 32s 1m0s 1m0s" {
		t.Errorf("%v, waited %v", err, waits)
	}
	if len(said) != 8 || !strings.Contains(said[0], "429") || !strings.Contains(said[7], "503") {
		t.Errorf("said %q", said)
	}
}

// TestClientBounds: a change is no larger than the server takes, and an answer than it is
// worth.
func TestClientBounds(t *testing.T) {
	s := start(t, 1000)
	list := users(3*pushed.MaxChange + 10)
	for _, n := range []int{pushed.MaxChange, pushed.MaxChange + 1} {
		c, _ := s.front(t, nil, list[n:], func(w http.ResponseWriter, r *http.Request) {
			if (r.Method == http.MethodPatch) != (n == pushed.MaxChange) {
				t.Errorf("a change of %d: %s", n, r.Method)
			}
			io.Copy(io.Discard, r.Body) // who answers earlier may reset the connection
			fmt.Fprint(w, "{}")
		})
		if _, _, err := c.Push(t.Context(), domain, list, list[n:]); err != nil {
			t.Error(err)
		}
	}
	c, _ := s.front(t, nil, nil, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat(" ", maxAnswer), "{}") })
	c.Tries = 1
	if _, _, err := c.Push(t.Context(), domain, users(1), nil); err == nil {
		t.Error("it reads on and on")
	}
}

// FuzzServer reads any list: what is taken is what was meant.
func FuzzServer(f *testing.F) {
	for _, s := range []string{"a@example.org\n", "a@example.org\r\nb@example.org", `{"recipients": ["a@example.org"]}`, "\x00", "a\rb@example.org"} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, asJSON bool) {
		read := readLines
		if asJSON {
			read = readJSON
		}
		var got []string
		err := read(&bounded{bytes.NewReader(b), 1 << 20}, func(s string) error {
			a, err := pushed.Address(s, domain)
			got = append(got, a)
			return err
		})
		if err != nil {
			return
		}
		for _, a := range got {
			if strings.ContainsAny(a, "\r\n\x00") || !strings.HasSuffix(a, "@example.org") {
				t.Errorf("%q gives %q", b, a)
			}
		}
		if n := bytes.Count(b, []byte("@")); len(got) > n && !asJSON {
			t.Errorf("%q gives %d addresses", b, len(got))
		}
	})
}
