package policysync

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"time"
)

// Pin names a key: SHA-256 of the SubjectPublicKeyInfo (RFC 5280 §4.1) of a
// TLS key. For keys that sign heads it is the raw Ed25519 public key.
type Pin [32]byte

func (p Pin) String() string { return hex.EncodeToString(p[:]) }

// MarshalText spells the pin in hexadecimal.
func (p Pin) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Pin) UnmarshalText(b []byte) error {
	if len(b) != 2*len(p) {
		return fmt.Errorf("pin %.80q: want %d hexadecimal digits", b, 2*len(p))
	}
	_, err := hex.Decode(p[:], b)
	return err
}

// PinOf returns the pin of a TLS key.
func PinOf(pub ed25519.PublicKey) Pin {
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		panic("policysync: encode Ed25519 key: " + err.Error()) // the type can always be encoded
	}
	return sha256.Sum256(spki)
}

func anyPin(pins []Pin, p Pin) bool {
	found := 0
	for i := range pins {
		found |= subtle.ConstantTimeCompare(pins[i][:], p[:])
	}
	return found == 1
}

// Fingerprint is what the operators of both sides compare: it names the
// server's key, the client's and the one that signs heads.
func Fingerprint(server, client, policy Pin) string {
	sum := sha256.Sum256([]byte("understudy-pairing\n" + string(server[:]) + string(client[:]) + string(policy[:])))
	s := base32.StdEncoding.EncodeToString(sum[:10])
	return s[:4] + "-" + s[4:8] + "-" + s[8:12] + "-" + s[12:]
}

// loadKey reads a private key (PKCS #8, PEM), or makes one when there is none
// and make is set.
func loadKey(fsys fileSystem, path string, create bool) (ed25519.PrivateKey, error) {
	b, err := fsys.ReadFile(path, 4096)
	if errors.Is(err, fs.ErrNotExist) && create {
		return makeKey(fsys, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("read key %s: no PRIVATE KEY in PEM form", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read key %s: it is no Ed25519 key", path)
	}
	return key, nil
}

func makeKey(fsys fileSystem, path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, saveKey(fsys, path, key)
}

func saveKey(fsys fileSystem, path string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return replaceFile(fsys, path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func publicOf(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// certificate wraps a key for TLS. Nobody checks anything of it but its key.
func certificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "understudy"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 §4.1.2.5: no expiry
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, publicOf(key), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// peerPin is the pin of the key that the other side of a connection showed.
func peerPin(cs *tls.ConnectionState) (Pin, error) {
	if len(cs.PeerCertificates) == 0 {
		return Pin{}, errors.New("the peer showed no key")
	}
	pub, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return Pin{}, errors.New("the peer's key is no Ed25519 key")
	}
	return PinOf(pub), nil
}

// tlsConfig is what both sides share: TLS 1.3, HTTP/2, our key, and check on
// the peer's pin in place of any certificate authority.
func tlsConfig(key ed25519.PrivateKey, check func(Pin) error) (*tls.Config, error) {
	cert, err := certificate(key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{cert},
		NextProtos:             []string{"h2"},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // VerifyConnection pins the key instead
		SessionTicketsDisabled: true, // no resumption: each handshake shows both keys
		VerifyConnection: func(cs tls.ConnectionState) error {
			pin, err := peerPin(&cs)
			if err != nil {
				return err
			}
			return check(pin)
		},
	}, nil
}
