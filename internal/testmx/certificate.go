package testmx

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"time"
)

// Certificate makes a key and a certificate, signed by itself, for a host
// name; it is good for an hour, and its own authority. change, if any, has the
// last word. Both are PEM.
func Certificate(name string, change func(*x509.Certificate)) (cert, key []byte) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if change != nil {
		change(template)
	}
	der, err2 := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	keyDER, err3 := x509.MarshalPKCS8PrivateKey(private)
	if err := errors.Join(err, err2, err3); err != nil {
		panic(err) // change made a template that isn't one
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}
