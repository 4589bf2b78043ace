package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// TestDashboard has a real Prometheus scrape an outage from its beginning to the
// last message, and wants an answer from it to every question of the
// dashboard's.
func TestDashboard(t *testing.T) {
	primary := newPostfix(t)
	s := newSecondary(t, primary.addr, policyFor("alice@example.org"), "")
	s.start()
	web := testmx.FreeAddr()
	dir := tempDir(t)
	write(t, dir+"/prometheus.yml", fmt.Sprintf("global: {scrape_interval: 500ms}\nscrape_configs:\n  - job_name: understudy\n    static_configs: [{targets: [%q]}]\n", s.metricsAddr))
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	prometheus, err := testmx.StartDaemon(web, log, "prometheus", "--config.file="+dir+"/prometheus.yml", "--storage.tsdb.path="+dir+"/data", "--web.listen-address="+web)
	if err != nil {
		t.Fatalf("%v\n%s", err, readFile(t, dir+"/log"))
	}
	t.Cleanup(func() {
		if err := prometheus.Kill(); err != nil {
			t.Error(err)
		}
	})
	send := func(to string) {
		testmx.Send(t, s.addr, demo.Mail{From: "bob@sender.example", To: []string{to}, Content: []byte("Subject: x\r\n\r\nx\r\n")})
	}
	// A rate needs two scrapes that know the counter: mail comes again and again.
	for range 3 {
		send("alice@example.org")
		send("nobody@example.org")
		time.Sleep(time.Second) // two scrapes of a real clock
	}
	primary.start()
	eventually(t, time.Minute, "the queue is empty", func() bool { return len(s.queue()) == 0 })

	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, "../metrics/grafana.json")), &board); err != nil {
		t.Fatal(err)
	}
	if len(board.Panels) < 10 {
		t.Fatalf("%d panels", len(board.Panels))
	}
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			expr := strings.NewReplacer("$instance", ".*", "$__rate_interval", "1m").Replace(q.Expr)
			var last string
			eventually(t, 20*time.Second, p.Title+": an answer to "+expr, func() bool {
				var n int
				n, last = ask(t, web, expr)
				return n > 0
			})
			if strings.Contains(last, "NaN") && !strings.Contains(expr, "histogram") {
				t.Errorf("%s: %s answers %s", p.Title, expr, last)
			}
		}
	}
}

// ask puts a question to Prometheus and returns how many series answer it.
func ask(t *testing.T, web, expr string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + web + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	var answer struct {
		Status string
		Data   struct{ Result []json.RawMessage }
	}
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err != nil || answer.Status != "success" {
		t.Fatalf("%s: %v\n%s", expr, err, text)
	}
	return len(answer.Data.Result), string(text)
}
