package smtpd

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-mx/understudy/metrics"
)

// CertFile is a certificate and its key in PEM files, read anew by Reload.
// Sessions that are open keep the certificate that they began with. A
// pair that can't be used is refused aloud; the last good one stays.
type CertFile struct {
	cert, key string
	log       *slog.Logger
	metrics   *metrics.Metrics

	mu   sync.Mutex // serialises reloads
	used atomic.Pointer[tls.Certificate]
}

// OpenCertFile reads the pair for the first time.
func OpenCertFile(cert, key string, log *slog.Logger, m *metrics.Metrics) (*CertFile, error) {
	c := &CertFile{cert: cert, key: key, log: log, metrics: m}
	return c, c.Reload()
}

// Config is the TLS configuration to serve with: TLS 1.2 and later, session
// tickets under keys that the runtime makes and changes daily.
func (c *CertFile) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.used.Load(), nil
		},
	}
}

// Reload reads the pair again. On an error the pair in use stays.
func (c *CertFile) Reload() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		c.count("refused")
		return fmt.Errorf("load certificate %s with key %s: %w", c.cert, c.key, err)
	}
	if old := c.used.Load(); old != nil && slices.EqualFunc(old.Certificate, pair.Certificate, slices.Equal) {
		c.count("unchanged")
		return nil
	}
	if left := time.Until(pair.Leaf.NotAfter); left < 0 {
		c.log.Warn("TLS certificate has expired", "file", c.cert, "expired", pair.Leaf.NotAfter)
	}
	c.used.Store(&pair)
	c.count("changed")
	c.metrics.CertExpiry.Set(float64(pair.Leaf.NotAfter.Unix()))
	c.log.Info("TLS certificate loaded", "file", c.cert, "expires", pair.Leaf.NotAfter)
	return nil
}

func (c *CertFile) count(result string) { c.metrics.CertReloads.WithLabelValues(result).Inc() }
