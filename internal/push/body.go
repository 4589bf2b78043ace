package push

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/understudy-mx/understudy/internal/pushed"
)

var (
	errBody = errors.New("the body is refused")
	errSize = errors.New("the body is too long")
)

// zstdWindow bounds the memory that a compressed body costs.
const zstdWindow = 8 << 20

// body is a request's body, unpacked.
type body struct {
	io.Reader           // fails with errSize beyond the bound
	json      bool      // else a line for each address
	raw       io.Reader // as it was sent
	sum       hash.Hash // of raw
	want      func() (string, error)
	unpack    io.Closer // nil: not compressed
}

// openBody prepares a body for reading. Whoever reads it MUST call finish before
// believing it.
func openBody(w http.ResponseWriter, r *http.Request, most int64) (*body, error) {
	if len(r.Trailer) == 0 && r.Header.Get("Content-Digest") == "" && r.ContentLength < 0 {
		return nil, &problem{http.StatusLengthRequired, "a body needs Content-Length or Content-Digest, or half of it can't be told from the whole"}
	}
	b := &body{sum: sha256.New()}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case r.Header.Get("Content-Type") == "", err == nil && kind == "text/plain", err == nil && kind == "application/x-www-form-urlencoded": // curl's --data-binary
	case err == nil && kind == "application/json":
		b.json = true
	default:
		return nil, &problem{http.StatusUnsupportedMediaType, "text/plain with one address a line, or application/json"}
	}
	if r.Method == http.MethodPatch && !b.json {
		return nil, &problem{http.StatusUnsupportedMediaType, `PATCH takes application/json: {"added": [...], "removed": [...]}`}
	}
	slow := &patient{http.MaxBytesReader(w, r.Body, most), http.NewResponseController(w)}
	b.raw = io.TeeReader(slow, b.sum)
	b.want = func() (string, error) { return wantDigest(r) }
	if _, err := b.want(); err != nil && len(r.Trailer) == 0 {
		return nil, err
	}
	if err := b.decode(r.Header.Get("Content-Encoding")); err != nil {
		return nil, err
	}
	b.Reader = &bounded{b.Reader, most}
	return b, nil
}

func (b *body) decode(encoding string) error {
	switch encoding {
	case "", "identity":
		b.Reader = b.raw
	case "gzip":
		z, err := gzip.NewReader(b.raw)
		if err != nil {
			return fmt.Errorf("%w: gzip: %w", errBody, err)
		}
		b.Reader, b.unpack = z, z
	case "zstd":
		z, err := zstd.NewReader(b.raw, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return err
		}
		b.Reader, b.unpack = z, z.IOReadCloser()
	default:
		return &problem{http.StatusUnsupportedMediaType, "Content-Encoding: gzip, zstd or none"}
	}
	return nil
}

func (b *body) close() {
	if b.unpack != nil {
		b.unpack.Close()
	}
}

// finish reads to the end, and fails unless all is there and as it was sent.
func (b *body) finish() error {
	if n, err := io.Copy(io.Discard, b.Reader); err != nil || n > 0 {
		return fmt.Errorf("%w: %w", errBody, errors.Join(err, errIf(n > 0, "more follows its end")))
	}
	if n, err := io.Copy(io.Discard, b.raw); err != nil || n > 0 {
		return fmt.Errorf("%w: %w", errBody, errors.Join(err, errIf(n > 0, "more follows the compressed part")))
	}
	want, err := b.want() // a trailer is there now
	if err != nil {
		return err
	}
	if got := base64.StdEncoding.EncodeToString(b.sum.Sum(nil)); want != "" && got != want {
		return fmt.Errorf("%w: it isn't as Content-Digest says", errBody)
	}
	return nil
}

func errIf(is bool, text string) error {
	if is {
		return errors.New(text)
	}
	return nil
}

// wantDigest reads Content-Digest (RFC 9530 §2), "" for none, from the header or the
// trailer. What has no length must have one.
func wantDigest(r *http.Request) (string, error) {
	v := r.Header.Get("Content-Digest")
	if t := r.Trailer["Content-Digest"]; len(t) > 0 {
		if v != "" || len(t) > 1 {
			return "", fmt.Errorf("%w: Content-Digest is there twice", errBody)
		}
		v = t[0]
	}
	if v == "" {
		if r.ContentLength < 0 {
			return "", fmt.Errorf("%w: it has no digest", errBody)
		}
		return "", nil
	}
	digest := ""
	for part := range strings.SplitSeq(v, ",") {
		d, ok := strings.CutPrefix(strings.TrimSpace(part), "sha-256=:")
		if !ok {
			continue
		}
		if d, ok = strings.CutSuffix(d, ":"); !ok || len(d) != base64.StdEncoding.EncodedLen(sha256.Size) || digest != "" {
			return "", fmt.Errorf("%w: Content-Digest has not one sha-256, but several or half of one", errBody)
		}
		digest = d
	}
	if digest == "" {
		return "", fmt.Errorf("%w: Content-Digest has no sha-256 (RFC 9530)", errBody)
	}
	return digest, nil
}

// patient gives each piece of a body its own time.
type patient struct {
	io.Reader
	control *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	_ = p.control.SetReadDeadline(time.Now().Add(silence)) // not with a test's recorder
	n, err := p.Reader.Read(b)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %w", errBody, err)
	}
	return n, err
}

// bounded fails beyond so many octets.
type bounded struct {
	io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errSize
	}
	var size *http.MaxBytesError
	if err != nil && err != io.EOF && !errors.As(err, &size) && !errors.Is(err, errBody) { // a decoder's
		err = fmt.Errorf("%w: %w", errBody, err)
	}
	return n, err
}

// readLines reads an address a line. Blank lines don't count, nor does the byte order
// mark with which some programs begin a text.
func readLines(r io.Reader, add func(string) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			return fmt.Errorf("%w: line %d is too long", errBody, n)
		}
		if err != nil && err != io.EOF {
			return err
		}
		text := bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if n == 1 {
			text = bytes.TrimPrefix(text, []byte("\ufeff"))
		}
		if len(text) > 0 {
			if e := add(string(text)); e != nil {
				return fmt.Errorf("line %d: %w", n, e)
			}
		}
		if err == io.EOF {
			return nil
		}
	}
}

// readJSON reads {"recipients": ["a@example.org", ...]}.
func readJSON(r io.Reader, add func(string) error) error {
	d := json.NewDecoder(&shortTokens{r: r})
	seen := false
	err := object(d, func(key string) error {
		if key != "recipients" || seen {
			return fmt.Errorf(`%w: its JSON has "recipients" alone, once`, errBody)
		}
		seen = true
		return array(d, add)
	})
	if err == nil && !seen {
		err = fmt.Errorf(`%w: its JSON lacks "recipients"`, errBody)
	}
	return err
}

// change is the body of a PATCH.
type change struct{ Added, Removed []string }

// readChange reads {"added": [...], "removed": [...]} to its end.
func readChange(b *body) (c change, err error) {
	d := json.NewDecoder(&shortTokens{r: b})
	seen := map[string]bool{}
	err = object(d, func(key string) error {
		to := map[string]*[]string{"added": &c.Added, "removed": &c.Removed}[key]
		if to == nil || seen[key] {
			return fmt.Errorf(`%w: its JSON has "added" and "removed", each once`, errBody)
		}
		seen[key] = true
		return array(d, func(s string) error {
			if len(c.Added)+len(c.Removed) >= pushed.MaxChange {
				return fmt.Errorf("%w: a change names at most %d addresses; PUT the whole list", pushed.ErrTooLong, pushed.MaxChange)
			}
			*to = append(*to, s)
			return nil
		})
	})
	if err == nil {
		err = b.finish()
	}
	return c, err
}

// object reads an object to the body's end; value reads each key's.
func object(d *json.Decoder, value func(key string) error) error {
	if err := delim(d, '{'); err != nil {
		return err
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("%w: %w", errBody, err)
		}
		key, _ := t.(string)
		if err := value(key); err != nil {
			return err
		}
	}
	if err := delim(d, '}'); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: more follows its JSON", errors.Join(errBody, err))
	}
	return nil
}

func array(d *json.Decoder, add func(string) error) error {
	if err := delim(d, '['); err != nil {
		return err
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("%w: %w", errBody, err)
		}
		s, ok := t.(string)
		if !ok {
			return fmt.Errorf("%w: its lists hold strings", errBody)
		}
		if err := add(s); err != nil {
			return err
		}
	}
	return delim(d, ']')
}

func delim(d *json.Decoder, want json.Delim) error {
	t, err := d.Token()
	if err != nil {
		return fmt.Errorf("%w: %w", errBody, err)
	}
	if t != want {
		return fmt.Errorf("%w: its JSON has another form", errBody)
	}
	return nil
}

// shortTokens bounds what JSON makes its decoder keep: it fails where no quote
// ends a stretch of text.
type shortTokens struct {
	r     io.Reader
	since int // octets after the last quote
}

func (s *shortTokens) Read(p []byte) (int, error) {
	n, err := s.r.Read(p[:min(len(p), 4096)])
	if i := bytes.LastIndexByte(p[:n], '"'); i >= 0 {
		s.since = n - i
	} else {
		s.since += n
	}
	if s.since > 64<<10 {
		return 0, fmt.Errorf("%w: a value in its JSON is too long", errBody)
	}
	return n, err
}
