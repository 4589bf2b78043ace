package policysync

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-mx/understudy/policy/table"
)

// Files of a follower's directory.
const (
	clientKeyFile = "client.key"
	pairingFile   = "primary.json"
)

// streamID names a publisher's policy.
type streamID [16]byte

// MarshalText spells the name in hexadecimal.
func (s streamID) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(s[:])), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *streamID) UnmarshalText(b []byte) error {
	if len(b) != 2*len(s) {
		return fmt.Errorf("stream %.40q: want %d hexadecimal digits", b, 2*len(s))
	}
	_, err := hex.Decode(s[:], b)
	return err
}

// pairing is what a follower knows of its primary.
type pairing struct {
	Address string   `json:"address"`
	Name    string   `json:"name"` // ours, on the primary
	Stream  streamID `json:"stream"`

	// Secrets are those under which recipients may be hashed: this pairing's, and
	// the one before, of which versions may be on the disk.
	Secrets []*table.Secret `json:"secrets,omitempty"`

	mu         sync.Mutex // guards both lists
	ServerPins []Pin      `json:"server_pins"`
	PolicyKeys []Pin      `json:"policy_keys"`
}

func loadPairing(fsys fileSystem, dir string) (*pairing, error) {
	b, err := fsys.ReadFile(path.Join(dir, pairingFile), 8192)
	if err != nil {
		return nil, err
	}
	p := new(pairing)
	if err := strictJSON(b, p); err != nil {
		return nil, fmt.Errorf("read %s: %w", path.Join(dir, pairingFile), err)
	}
	return p, p.check()
}

func (p *pairing) check() error {
	if n, k := len(p.ServerPins), len(p.PolicyKeys); n < 1 || n > maxKeys || k < 1 || k > maxKeys {
		return fmt.Errorf("the pairing names %d server keys and %d policy keys", n, k)
	}
	if !validName(p.Name) {
		return fmt.Errorf("the pairing calls this follower %.80q, which is no name", p.Name)
	}
	return nil
}

func (p *pairing) pins() []Pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ServerPins
}

func (p *pairing) keys() []Pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.PolicyKeys
}

func (p *pairing) same(h *Head) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Equal(p.ServerPins, h.ServerPins) && slices.Equal(p.PolicyKeys, h.PolicyKeys)
}

// renew trusts the keys of a head that was verified by the old ones.
func (p *pairing) renew(fsys fileSystem, dir string, h *Head) error {
	n := &pairing{Address: p.Address, Name: p.Name, Stream: p.Stream, Secrets: p.Secrets, ServerPins: h.ServerPins, PolicyKeys: h.PolicyKeys}
	if err := n.save(fsys, dir); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ServerPins, p.PolicyKeys = h.ServerPins, h.PolicyKeys
	return nil
}

func (p *pairing) save(fsys fileSystem, dir string) error {
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return fmt.Errorf("encode pairing: %w", err)
	}
	return replaceFile(fsys, path.Join(dir, pairingFile), append(b, '\n'))
}

// strictJSON refuses fields that v doesn't know and anything after the value.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("trailing data")
	}
	return nil
}

// token is what an invitation says, as one word to paste.
type token struct {
	address string
	server  Pin
	id      inviteID
	secret  [16]byte
}

// inviteID names an invitation.
type inviteID [8]byte

const tokenPrefix = "understudy1-"

func (t *token) String() string {
	b := append([]byte{byte(len(t.address))}, t.address...)
	b = append(b, t.server[:]...)
	b = append(b, t.id[:]...)
	b = append(b, t.secret[:]...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// parseToken reads what an operator pasted.
func parseToken(s string) (*token, error) {
	const remedy = "paste the whole line that `understudy invite` printed"
	s = strings.TrimSpace(s)
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	if !ok || len(s) > 1024 {
		return nil, fmt.Errorf("this is no invitation: it doesn't begin with %q; %s", tokenPrefix, remedy)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	const fixed = 1 + len(Pin{}) + len(inviteID{}) + 16 + 4
	if err != nil || strings.ContainsAny(rest, "\r\n") || // which base64 passes over
		len(b) < fixed || len(b) != fixed+int(b[0]) ||
		binary.BigEndian.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return nil, fmt.Errorf("the invitation is damaged or incomplete; %s", remedy)
	}
	n := 1 + int(b[0])
	t := &token{address: string(b[1:n])}
	b = b[n:]
	copy(t.id[:], b[copy(t.server[:], b):])
	copy(t.secret[:], b[len(t.server)+len(t.id):])
	if _, _, err := net.SplitHostPort(t.address); err != nil || strings.ContainsAny(t.address, "/?#@") ||
		strings.ContainsFunc(t.address, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("the invitation's address %q is not host:port", t.address)
	}
	return t, nil
}

// proofKey is derived from the secret. The primary keeps its public half
// alone, so that nothing on its disk lets anybody join.
func (t *token) proofKey() ed25519.PrivateKey {
	seed := sha256.Sum256(slices.Concat([]byte("understudy-invite\n"), t.id[:], t.secret[:]))
	return ed25519.NewKeyFromSeed(seed[:])
}

// joinPrefix starts the message that a proof signs.
const joinPrefix = "understudy-join\n"

// joinMessage is what the proof signs: this TLS session, and the key that is
// to be paired.
func joinMessage(cs *tls.ConnectionState, client Pin) ([]byte, error) {
	exported, err := cs.ExportKeyingMaterial("EXPORTER-understudy-join", nil, 32)
	if err != nil {
		return nil, fmt.Errorf("bind to the TLS session: %w", err)
	}
	return slices.Concat([]byte(joinPrefix), exported, client[:]), nil
}

// joinRequest and joinAnswer are the bodies of POST /v1/join.
type joinRequest struct {
	Invite string `json:"invite"` // hexadecimal
	Proof  []byte `json:"proof"`  // base64
}

type joinAnswer struct {
	Name       string   `json:"name"`
	Stream     streamID `json:"stream"`
	ServerPins []Pin    `json:"server_pins"`
	PolicyKeys []Pin    `json:"policy_keys"`
}

// Joined is the outcome of a pairing, for the operator.
type Joined struct {
	Address     string
	Name        string // of this follower, on the primary
	Fingerprint string // the primary prints the same
}

// Identity is a follower's key, by which others know what it signs. The first call
// makes it, in dir, which pairing will then use.
func Identity(dir string) (ed25519.PrivateKey, error) {
	fsys := osFS{}
	err := makeDir(fsys, dir)
	if err == nil {
		var key ed25519.PrivateKey
		if key, err = loadKey(fsys, path.Join(dir, clientKeyFile), true); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("this machine's key: %w", err)
}

// Join pairs this machine with the primary that made the invitation. It writes the
// key, made here and never sent, and the primary's keys to dir, and replaces any
// pairing there.
func Join(ctx context.Context, dir, invitation string) (*Joined, error) {
	return join(ctx, osFS{}, dir, invitation)
}

func join(ctx context.Context, fsys fileSystem, dir, invitation string) (*Joined, error) {
	t, err := parseToken(invitation)
	if err != nil {
		return nil, err
	}
	if err := makeDir(fsys, dir); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	key, err := loadKey(fsys, path.Join(dir, clientKeyFile), true)
	if err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	a, secret, err := t.ask(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("join %s: %w", t.address, err)
	}
	secrets := []*table.Secret{secret}
	if old, err := loadPairing(fsys, dir); err == nil && old.Stream == a.Stream && len(old.Secrets) > 0 {
		secrets = append(secrets, old.Secrets[0])
	}
	p := &pairing{Address: t.address, Name: a.Name, Stream: a.Stream, Secrets: secrets, ServerPins: a.ServerPins, PolicyKeys: a.PolicyKeys}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("join %s: %w", t.address, err)
	}
	if err := p.save(fsys, dir); err != nil {
		return nil, fmt.Errorf("join: %w", err)
	}
	return &Joined{t.address, a.Name, Fingerprint(t.server, PinOf(publicOf(key)), a.PolicyKeys[0])}, nil
}

// ask proves the invitation's secret over one connection. It also returns the
// secret under which recipients may be hashed.
func (t *token) ask(ctx context.Context, key ed25519.PrivateKey) (*joinAnswer, *table.Secret, error) {
	cfg, err := tlsConfig(key, func(pin Pin) error {
		if pin != t.server {
			return alarm(AlarmPin, "the machine that answers is not the one that made the invitation (its key is %s); correct publish.address there, or invite again", pin)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, chunkTimeout)
	defer cancel()
	raw, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, nil, explain(err)
	}
	defer raw.Close()
	conn := raw.(*tls.Conn)
	cs := conn.ConnectionState()
	msg, err := joinMessage(&cs, PinOf(publicOf(key)))
	if err != nil {
		return nil, nil, err
	}
	secret, err := exportSecret(&cs)
	if err != nil {
		return nil, nil, err
	}
	first := make(chan net.Conn, 1)
	first <- conn
	c := clientOf(key, cfg, t.address, func(context.Context, string, string) (net.Conn, error) {
		select {
		case c := <-first:
			return c, nil
		default:
			return nil, errors.New("the connection ended")
		}
	})
	defer c.close()
	b, err := c.post(ctx, "/v1/join", joinRequest{hex.EncodeToString(t.id[:]), ed25519.Sign(t.proofKey(), msg)}, 8192)
	if alarmOf(err, "") == AlarmUnreachable && conn.SetReadDeadline(time.Now()) == nil {
		// net/http may lose a TLS alert that comes before its request; the
		// connection remembers it.
		var op *net.OpError
		if _, alert := conn.Read(make([]byte, 1)); errors.As(alert, &op) && op.Op == "remote error" {
			err = explain(alert)
		}
	}
	if errors.Is(err, errGone) || alarmOf(err, "") == AlarmRefused {
		return nil, nil, alarm(AlarmRefused, "the primary refuses the invitation: it was used, is older than %s, or was revoked; make another with `understudy invite`", inviteLife)
	}
	if err != nil {
		return nil, nil, err
	}
	a := new(joinAnswer)
	if err := strictJSON(b, a); err != nil {
		return nil, nil, &AlarmError{AlarmProtocol, err}
	}
	return a, secret, nil
}
