package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/understudy-mx/understudy/internal/demo"
	"github.com/understudy-mx/understudy/internal/lister/listertest"
	"github.com/understudy-mx/understudy/internal/testmx"
)

// axe is what test/install-peers installs.
const axe = "/usr/local/lib/axe-core/axe.min.js"

// browser is a tab of a real Chromium. Whatever its console complains of fails
// the test.
type browser struct {
	t        *testing.T
	ctx      context.Context
	mu       sync.Mutex // guards what follows
	troubles []string
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	flags := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox) // root has no sandbox
	ctx, cancel = chromedp.NewExecAllocator(ctx, flags...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	b.do(chromedp.Navigate("about:blank"))
	console := chromedp.Console(ctx)
	go func() {
		for m, err := range console {
			if err != nil {
				return // the tab is closed
			}
			if m.Type == chromedp.ConsoleError || m.Type == chromedp.ConsoleException {
				b.mu.Lock()
				b.troubles = append(b.troubles, fmt.Sprint(m.Text, " ", m.URL))
				b.mu.Unlock()
			}
		}
	}()
	return b
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// eval is the value of an expression in the page, awaited.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		b.t.Fatalf("%.200s: %v", expression, err)
	}
	return v
}

// text is what an element shows, "" where there is none.
func (b *browser) text(selector string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf("document.querySelector(%q)?.innerText ?? ''", selector))
}

func (b *browser) wait(selector, want string) {
	b.t.Helper()
	var got string
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if got = b.text(selector); strings.Contains(got, want) {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("%s shows %q, want %q; the console: %q", selector, got, want, b.troubles)
		}
	}
}

// view is a screen: its size, and day or night.
func (b *browser) view(width, height int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height, chromedp.EmulateScale(1)))
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}); err != nil {
		b.t.Fatal(err)
	}
}

// accessible has axe-core look at the page.
func (b *browser) accessible(when string) {
	b.t.Helper()
	script, err := os.ReadFile(axe)
	if err != nil {
		b.t.Fatalf("test/install-peers installs it: %v", err)
	}
	type result struct {
		Passes     int
		Violations []struct {
			ID, Help string
			Nodes    []struct {
				HTML           string
				FailureSummary string
			}
		}
	}
	eval[any](b, string(script)+"; null")
	found := eval[result](b, `axe.run().then(r => ({Passes: r.passes.length, Violations: r.violations.map(v => ({ID: v.id, Help: v.help, Nodes: v.nodes.map(n => ({HTML: n.html, FailureSummary: n.failureSummary}))}))}))`)
	if found.Passes < 10 {
		b.t.Errorf("%s: axe-core passed %d rules only: it has not looked", when, found.Passes)
	}
	for _, v := range found.Violations {
		for _, n := range v.Nodes {
			b.t.Errorf("%s: %s: %s\n%s\n%s", when, v.ID, v.Help, n.HTML, n.FailureSummary)
		}
	}
}

// screenshots is where pictures are kept, "" for none: `make screenshots`.
var screenshots = os.Getenv("SCREENSHOTS")

// shoot keeps a picture of what fits on the screen.
func (b *browser) shoot(name string) {
	b.t.Helper()
	if screenshots == "" || !slices.Contains([]string{"outage-dark", "drain-light", "held-phone"}, name) {
		return
	}
	if strings.HasPrefix(name, "held") {
		eval[any](b, `document.querySelector("#held").closest("section").scrollIntoView()`)
	}
	png, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(screenshots, "page-"+name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// looks sees the page on a desk and on a phone, by day and by night.
func (b *browser) looks(name string) {
	b.t.Helper()
	for _, v := range []struct {
		name, scheme  string
		width, height int64
	}{{"light", "light", 1080, 800}, {"dark", "dark", 1080, 800}, {"phone", "dark", 360, 740}} {
		b.view(v.width, v.height, v.scheme)
		if wide := eval[int64](b, "document.documentElement.scrollWidth"); wide > v.width {
			b.t.Errorf("%s, %s: %d pixels wide, the screen has %d", name, v.name, wide, v.width)
		}
		b.accessible(name + ", " + v.name)
		b.shoot(name + "-" + v.name)
	}
	b.view(1080, 800, "light")
}

// key presses a key as a person does, with nothing but the keyboard.
func (b *browser) key(keys string) {
	b.t.Helper()
	b.do(chromedp.KeyEvent(keys))
}

const hostileLetter = "Subject: a <script>alert(2)</script> letter\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n" +
	"--b\r\nContent-Type: text/plain\r\n\r\n<img src=x onerror=alert(3)> plain\r\n--b\r\nContent-Type: text/html\r\n\r\n<script>alert(4)</script>\r\n--b--\r\n"

// TestPage watches an outage on the page, in a real browser: the primary is down,
// mail comes in, the primary is back and refuses some of it, the rest drains, and
// what is held is read, released and removed. What others wrote into their mail stays
// text.
func TestPage(t *testing.T) {
	const refused = "smtpd_recipient_restrictions = check_recipient_access inline:{ {gone@example.org = 550 5.1.1 <script>alert(1)</script>} {late@example.org = 550 5.1.1 later} }"
	primary := newPostfix(t, refused)
	addr, n, extra := testmx.FreeAddr(), 14, ""
	if screenshots != "" { // a line worth a picture, and no warning above it
		n, extra = 600, "xclient = false\n"
	}
	secondary := newSecondary(t, primary.addr, policyFor("gone@example.org", "late@example.org", "alice@example.org", "bob@example.org"),
		fmt.Sprintf("%smax_rate = 25\n[web]\nlisten = %q\nshow_mail = true\n", extra, addr))
	secondary.start()
	url := strings.TrimSpace(secondary.cli("page"))

	b := newBrowser(t)
	b.view(1080, 800, "light")
	b.do(chromedp.Navigate("http://" + addr + "/"))
	b.wait("#door", "understudy page")
	b.accessible("without the token")
	b.mu.Lock()
	b.troubles = nil // the console tells of the 403
	b.mu.Unlock()
	eval[any](b, `document.querySelector("#token").focus()`)
	b.key(url + "\r")
	b.wait("#says", "is down, we stand in")
	if in := b.text("#link"); in != "live" {
		t.Errorf("the page says %q of its line", in)
	}

	var books testmx.Ledger
	for i := range n - 2 {
		accept(t, secondary, &books, []string{"alice@example.org", "bob@example.org"}[i%2])
	}
	accept(t, secondary, &books, "late@example.org")
	o := testmx.Send(t, secondary.addr, demo.Mail{Helo: "client.sender.example", From: `"<img/src=x/onerror=alert(1)>"@sender.example`,
		To: []string{"gone@example.org"}, Content: []byte(hostileLetter)}) // not in the books: it is removed
	if !o.Final.Positive() {
		t.Fatal(o.Last())
	}
	b.wait("#n-waiting", fmt.Sprint(n))
	b.wait("#waiting-note", fmt.Sprintf("The first 5 of %d", n))
	b.wait("#verdicts", "listed_recipient")
	b.wait("#outages", fmt.Sprintf("down now\n%d accepted", n))
	b.looks("outage")

	// The chart's day, and the page, outlive the daemon.
	restarted := time.Now()
	secondary.stop()
	b.wait("#link", "no connection")
	secondary.start()
	b.wait("#link", "live")
	b.wait("#n-waiting", fmt.Sprint(n))
	day := eval[[][]float64](b, `fetch("api/events", {headers: {Authorization: "Bearer " + sessionStorage.getItem("token")}}).then(async (r) => {
		const reader = r.body.pipeThrough(new TextDecoderStream()).getReader();
		let text = "";
		while (!text.includes("\n\n")) text += (await reader.read()).value;
		reader.cancel();
		return JSON.parse(/^event: history\ndata: (.*)/.exec(text)[1]).day.points;
	})`)
	if len(day) == 0 || day[0][0] > float64(restarted.Unix()) || day[len(day)-1][1] != float64(n) {
		t.Errorf("after a restart the day's chart is %v, want what was before %d", day, restarted.Unix())
	}
	eval[any](b, `document.querySelector("input[value=day]").click()`)
	b.wait("#chart-says", fmt.Sprintf("%d waiting now", n))
	eval[any](b, `document.querySelector("input[value=minutes]").click()`)
	b.mu.Lock()
	b.troubles = slices.DeleteFunc(b.troubles, func(s string) bool { return strings.Contains(s, "net::ERR_") }) // while it was away
	b.mu.Unlock()

	primary.start()
	b.wait("#says", "The primary is up")
	if screenshots != "" {
		eventually(t, time.Minute, "half of it has left", func() bool {
			left, err := strconv.Atoi(b.text("#n-waiting"))
			return err == nil && left < n/2
		})
		b.looks("drain")
	}
	b.wait("#more", "Nothing waits")
	b.wait("#n-held", "2")
	b.wait("#held", "The primary refused it: 550 5.1.1 <gone@example.org>: Recipient address rejected: <script>alert(1)</script>")
	b.wait("#held", "<img/src=x/onerror=alert(1)>")
	b.looks("held")

	eval[any](b, `document.querySelector("#held [data-of^=Read]").focus()`)
	b.key("\r")
	b.wait("#letter-mail", "to ")
	b.key("\r") // Close has the focus
	eval[any](b, `[...document.querySelectorAll("#held li")].find(e => e.innerText.includes("gone@")).querySelector("[data-of^=Read]").click()`)
	b.wait("#letter-text", "Subject: a <script>alert(2)</script> letter")
	b.wait("#letter-text", "<img src=x onerror=alert(3)> plain")
	if text := b.text("#letter-text"); strings.Contains(text, "alert(4)") {
		t.Errorf("HTML is shown: %s", text)
	}
	b.accessible("reading")
	b.key("\r")

	// By keyboard alone: release the first, once the primary takes it.
	primary.reconfigure("smtpd_recipient_restrictions = check_recipient_access inline:{ {gone@example.org = 550 5.1.1 gone} }")
	ask := func(button, of string) {
		t.Helper()
		eval[any](b, fmt.Sprintf(`[...document.querySelectorAll("#held li")].find(e => e.innerText.includes(%q)).querySelector("[data-of^=%s]").focus()`, of, button))
		b.key("\r")
		b.wait("#ask", button)
	}
	ask("Release", "late@example.org")
	b.accessible("asked")
	b.key("\r") // Cancel has the focus
	b.wait("#n-held", "2")
	ask("Release", "late@example.org")
	b.key("\t\r")
	b.wait("#n-held", "1")
	ask("Remove", "gone@example.org")
	b.key("\t\r")
	b.wait("#n-held", "0")
	b.wait("#held-note", "None.")
	b.wait("#more", "Nothing waits.")
	b.wait("#outages", fmt.Sprintf("%d accepted, 0 refused", n))
	b.looks("drained")
	// What the report's button saves is the report.
	const save = `(() => {
		let blob;
		URL.createObjectURL = (b) => { blob = b; return "blob:"; };
		HTMLAnchorElement.prototype.click = () => {};
		document.querySelector("[data-of='report 1']").click();
		const began = Date.now();
		return new Promise((resolve) => {
			const look = () => blob ? resolve(blob.text()) : Date.now() - began > 10_000 ? resolve(document.querySelector("#more").innerText) : setTimeout(look, 20);
			look();
		});
	})()`
	eventually(t, time.Minute, "the report is saved", func() bool {
		saved := eval[string](b, save)
		ok := strings.Contains(saved, "An outage of the primary mail server") && strings.Contains(saved, fmt.Sprintf("%d message", n))
		if !ok {
			t.Logf("the report: %s", saved)
		}
		return ok
	})

	if eval[int](b, "document.images.length + document.querySelectorAll('main script').length") > 0 {
		t.Error("what others wrote has become markup")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.troubles) > 0 {
		t.Errorf("the console: %q", b.troubles)
	}
	settled := readFile(t, secondary.path("log"))
	for _, what := range []string{"release", "remove"} {
		entry, err := json.Marshal(what)
		if err != nil || !strings.Contains(settled, `"what":`+string(entry)) {
			t.Errorf("the log doesn't tell of %s", what)
		}
	}
	if strings.Contains(settled, url[strings.IndexByte(url, '#')+1:]) {
		t.Error("the token is in the log")
	}
	secondary.stop()
	closeBooks(t, &books, primary, 0)
}

// TestPageFleet sees two secondaries that share a database on the page of one, in a real
// browser: who lives, whose policy differs, and who has how much of the mail.
func TestPageFleet(t *testing.T) {
	node := listertest.Primary(t)
	primary := &demo.Primary{}
	startAgain(t, primary)
	primary.Stop() // mail waits
	addr := testmx.FreeAddr()
	a := newMember(t, "mx2.example.org", primary.Addr(), policyFor("a@example.org"), fmt.Sprintf("durability = \"one-machine\"\n[web]\nlisten = %q\n", addr), node)
	other := newMember(t, "mx3.example.org", primary.Addr(), policyFor("a@example.org", "b@example.org"), "durability = \"one-machine\"\n", node)
	a.start()
	other.start()
	var books testmx.Ledger
	for range 3 {
		accept(t, a, &books, "a@example.org")
	}
	accept(t, other, &books, "a@example.org")

	b := newBrowser(t)
	b.view(1080, 800, "light")
	b.do(chromedp.Navigate(strings.Replace(strings.TrimSpace(a.cli("page")), "localhost", "127.0.0.1", 1)))
	b.wait("#fleet-note", "2 of 2 secondaries alive. 1 has another policy than the newest.")
	b.wait("#members li:nth-child(1)", "3 messages, 75 % of all")
	b.wait("#members li:nth-child(2)", "1 message, 25 % of all")
	if one := b.text("#members li:nth-child(1)"); !strings.HasPrefix(one, "mx2.example.org this one, alive, policy from a file, ") || strings.Contains(one, "differs") {
		t.Errorf("the first: %q", one)
	}
	if two := b.text("#members li:nth-child(2)"); !strings.HasPrefix(two, "mx3.example.org, alive, ") || !strings.Contains(two, "differs") {
		t.Errorf("the second: %q", two)
	}
	b.looks("fleet")
	other.kill()
	b.wait("#fleet-note", "1 of 2 secondaries alive.")
	b.wait("#members li:nth-child(2)", "silent for ")
	b.looks("fleet, one is gone")
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.troubles) > 0 {
		t.Errorf("the console: %q", b.troubles)
	}
}
