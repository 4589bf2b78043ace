package policysync

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// stalledWriter is a follower that doesn't read its answer until told.
type stalledWriter struct {
	http.ResponseWriter
	writing, read chan struct{}
}

func (s *stalledWriter) Write(p []byte) (int, error) {
	close(s.writing)
	<-s.read
	return s.ResponseWriter.Write(p)
}

// A follower that doesn't read the answer to its report holds up nobody else.
func TestStalledFollowerHoldsUpNobody(t *testing.T) {
	p := newPrimaryDir(t)
	w := &stalledWriter{httptest.NewRecorder(), make(chan struct{}), make(chan struct{})}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		r := httptest.NewRequest("POST", "/v1/report?sources", strings.NewReader("{}"))
		p.serveReport(w, r, &peer{Name: "mx2"})
	}()
	<-w.writing
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		p.Status()
	}()
	select {
	case <-asked:
	case <-time.After(time.Minute):
		t.Error("the publisher waits for a follower to read")
	}
	close(w.read)
	<-answered
	<-asked
}
