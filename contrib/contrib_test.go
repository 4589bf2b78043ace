// Package contrib has scripts for primaries that can't be read; here are their tests,
// against fakes that answer as the published APIs do.
package contrib

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/understudy-mx/understudy/internal/lister/listertest"
)

// list runs the script.
func list(t *testing.T, args ...string) (out, stderr string, code int) {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3", append([]string{"-I", "list-recipients"}, args...)...)
	var o, e bytes.Buffer
	cmd.Stdout, cmd.Stderr = &o, &e
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// fromPage is the command of the page docs/primaries/KIND.md, where KIND goes up to an
// underscore, with the values of args, which begin with the kind and the domain, and with
// their flags that only a fake needs.
func fromPage(t *testing.T, args []string) []string {
	t.Helper()
	name, _, _ := strings.Cut(args[0], "_")
	page, err := os.ReadFile("../docs/primaries/" + name + ".md")
	if err != nil {
		t.Fatal(err)
	}
	_, line, found := strings.Cut(string(page), "\n       list-recipients "+args[0]+" ")
	line, _, _ = strings.Cut(line, " > list\n")
	words := append([]string{args[0]}, strings.Fields(line)...)
	if !found || len(words) < 3 || words[len(words)-1] != "example.org" {
		t.Fatalf("the page's command is %q, and the test's %q", line, args)
	}
	words[len(words)-1] = args[1]
	for i := 2; i < len(args); i++ {
		flag := args[i]
		at := slices.Index(words, flag)
		if flag == "--no-tls" {
			words = append(words, flag)
			continue
		}
		i++
		if at >= 0 {
			words[at+1] = args[i]
		} else if slices.Contains([]string{"--url", "--login-url", "--token-url", "--ca"}, flag) {
			words = append(words, flag, args[i])
		} else {
			t.Errorf("the page's command lacks %s", flag)
		}
	}
	return words
}

// wants compares a list, one word an address.
func wants(t *testing.T, want string, args ...string) {
	t.Helper()
	out, stderr, code := list(t, fromPage(t, args)...)
	if code != 0 || strings.Join(strings.Fields(out), " ") != want {
		t.Errorf("exit %d, %q, want %q; %s", code, out, want, stderr)
	}
}

// fails expects nothing on the standard output: no half of a list.
func fails(t *testing.T, reason string, args ...string) {
	t.Helper()
	out, stderr, code := list(t, args...)
	if code == 0 || out != "" || !strings.Contains(stderr, reason) {
		t.Errorf("exit %d, %q, %q; want a failure with %q", code, out, stderr, reason)
	}
}

func file(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// fake serves what a test's steps say, in place of an API.
type fake struct {
	*httptest.Server
	mu  sync.Mutex // held for each request
	how string     // how it fails: "", or a word of the test's
	n   int        // requests that asked for a page

	tokens int // that have ended
}

func serve(t *testing.T, h func(f *fake, w http.ResponseWriter, r *http.Request)) *fake {
	f := &fake{}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_ = r.ParseForm()
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		h(f, w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// next says how the next requests fail.
func (f *fake) next(how string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.how, f.n = how, 0
}

func answer(w http.ResponseWriter, text string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, text, args...)
}

// fault fails page n in the way that how says, and says whether it has. refused is the
// body of an error, as the API has it: %d, %s, %s for the status, a word and a text.
func (f *fake) fault(w http.ResponseWriter, page int, refused string) bool {
	if f.n++; f.n != page && !(f.how == "revoked" && f.n > page) {
		return false
	}
	fail := func(status int, word, text string) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, refused, status, word, text)
		return true
	}
	switch f.how {
	case "429":
		w.Header().Set("Retry-After", "0")
		return fail(429, "TooManyRequests", "Please retry after")
	case "later":
		w.Header().Set("Retry-After", "9000")
		return fail(429, "TooManyRequests", "Please retry again later.")
	case "date":
		w.Header().Set("Retry-After", time.Now().Add(2*time.Hour).UTC().Format(http.TimeFormat))
		return fail(503, "serviceNotAvailable", "The service is temporarily unavailable.")
	case "503":
		return fail(503, "backendError", "Service unavailable.")
	case "slower":
		return fail(403, "userRateLimitExceeded", "User Rate Limit Exceeded")
	case "expired", "revoked":
		f.tokens++ // the ones before are no longer good
		return fail(401, "InvalidAuthenticationToken", "Access token has expired or is not yet valid.")
	case "403":
		return fail(403, "Authorization_RequestDenied", "Insufficient privileges to complete the operation.")
	case "garbage":
		answer(w, "<html>")
	case "other":
		answer(w, "{}")
	case "cut":
		w.Header().Set("Content-Length", "1000")
		answer(w, `{"value": [`)
	default:
		return false
	}
	return true
}

// token answers as a token endpoint (RFC 6749, section 5.1).
func (f *fake) token(w http.ResponseWriter) {
	answer(w, `{"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": "tok%d"}`, f.tokens)
}

// known says whether a request has the token that is good now.
func (f *fake) known(r *http.Request) bool {
	return r.Header.Get("Authorization") == fmt.Sprintf("Bearer tok%d", f.tokens)
}

// Graph's and Google's errors (learn.microsoft.com/graph/errors,
// developers.google.com/workspace/admin/directory/v1/limits).
const (
	graphError  = `{"error": {"code": "%[2]s", "message": "%[3]s", "innerError": {"date": "2026-11-30T02:00:00", "request-id": "0", "client-request-id": "0"}}}`
	googleError = `{"error": {"code": %[1]d, "message": "%[3]s", "errors": [{"message": "%[3]s", "domain": "usageLimits", "reason": "%[2]s"}]}}`
)

// TestMicrosoft365 has the fields of microsoft-graph-docs-contrib, api-reference/v1.0:
// api/user-list.md, group-list.md, orgcontact-list.md; with $select nothing else comes.
func TestMicrosoft365(t *testing.T) {
	f := serve(t, func(f *fake, w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		user := func(id, mail, proxies string) string {
			return fmt.Sprintf(`{"id": %q, "mail": %s, "proxyAddresses": %s}`, id, mail, proxies)
		}
		first := q.Get("$skiptoken") == "" && q.Get("$top") == "999" && q.Get("$select") == "id,mail,proxyAddresses"
		alice := user("1", `"Alice@Example.org"`, `["SMTP:Alice@Example.org", "smtp:a.l@example.org", "SIP:alice@example.org", "X500:/o=x"]`)
		shared := user("4", `"shared@example.org"`, `["SMTP:shared@example.org"]`)
		list := func(kind, next string, entries ...string) {
			if next != "" {
				next = fmt.Sprintf(`"@odata.nextLink": "%s/v1.0/%s?$select=id,mail,proxyAddresses&$top=999&$skiptoken=RFNwdAIAAQAAABc6p2", `, next, kind)
			}
			answer(w, `{"@odata.context": "https://graph.microsoft.com/v1.0/$metadata#%s(id,mail,proxyAddresses)", %s"value": [%s]}`, kind, next, strings.Join(entries, ","))
		}
		switch f.how {
		case "hidden": // an application that may see names only
			shared = user("4", "null", "null")
		case "absent":
			shared = `{"id": "4", "mail": "shared@example.org"}`
		case "twice":
			shared = alice
		case "nameless":
			shared = `{"mail": "shared@example.org", "proxyAddresses": []}`
		}
		next := f.URL
		switch {
		case r.URL.Path == "/t1/oauth2/v2.0/token" && (r.Form.Get("client_secret") != "s3cret" || r.Form.Get("client_id") != "app"):
			w.WriteHeader(401)
			fmt.Fprint(w, `{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided.", "error_codes": [7000215], "timestamp": "2026-11-30 02:00:00Z", "trace_id": "0", "correlation_id": "0", "error_uri": "https://login.microsoftonline.com/error?code=7000215"}`)
		case r.URL.Path == "/t1/oauth2/v2.0/token" && r.Form.Get("grant_type") == "client_credentials" && r.Form.Get("scope") == f.URL+"/.default":
			f.token(w)
		case !f.known(r):
			w.WriteHeader(401)
			fmt.Fprintf(w, graphError, 401, "InvalidAuthenticationToken", "Access token has expired or is not yet valid.")
		case f.fault(w, 3, graphError):
		case r.URL.Path == "/v1.0/users" && f.how == "nobody":
			list("users", "")
		case r.URL.Path == "/v1.0/users" && first:
			if f.how == "elsewhere" {
				next = "http://127.0.0.2:1"
			}
			list("users", next, alice, user("2", "null", "[]"), user("3", `"guest@elsewhere.example"`, `["SMTP:guest@elsewhere.example"]`))
		case r.URL.Path == "/v1.0/users" && f.how == "loop":
			list("users", next)
		case r.URL.Path == "/v1.0/users":
			list("users", "", shared)
		case r.URL.Path == "/v1.0/groups" && first:
			list("groups", "", user("5", `"all@example.org"`, `["SMTP:all@example.org", "smtp:all@example.onmicrosoft.com"]`))
		case r.URL.Path == "/v1.0/contacts" && first:
			list("contacts", "", user("6", `"out@example.org"`, `["smtp:out@example.org"]`))
		default:
			w.WriteHeader(404)
		}
	})
	args := []string{"microsoft365", "example.org", "--tenant", "t1", "--client-id", "app", "--secret-file", file(t, "s3cret\n"), "--url", f.URL, "--login-url", f.URL}
	const want = "a.l@example.org alice@example.org all@example.org out@example.org shared@example.org"
	wants(t, want, args...)
	for _, word := range []string{"429", "503", "cut", "expired"} {
		f.next(word)
		wants(t, want, args...)
	}
	for word, reason := range map[string]string{
		"later": "try again after 9000 s", "date": "try again after 7", "403": "403 Forbidden 'Authorization_RequestDenied: Insufficient privileges", "garbage": "no JSON",
		"other": "lacks 'value'", "elsewhere": "sends us to another", "loop": "no end", "revoked": "401 Unauthorized 'InvalidAuthenticationToken: ",
		"hidden": "keeps back the addresses of users", "absent": "keeps back the addresses of users", "twice": "comes twice", "nameless": "has no id", "nobody": "no users",
	} {
		f.next(word)
		fails(t, reason, args...)
	}
	args[1] = "example.com"
	f.next("")
	fails(t, "no recipient of example.com", args...)
	fails(t, "401 Unauthorized 'invalid_client: AADSTS7000215", append(args[:6:6], "--secret-file", file(t, "wrong"), "--url", f.URL, "--login-url", f.URL)...)
	fails(t, "https only", "microsoft365", "example.org", "--tenant", "t1", "--client-id", "app", "--secret-file", file(t, "x"), "--url", f.URL, "--login-url", "http://192.0.2.1")
}

// TestGoogle has the fields of the Directory API's discovery document, admin
// directory_v1: User and Group.
func TestGoogle(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	account, _ := json.Marshal(map[string]string{"type": "service_account", "client_email": "sa@p.iam.gserviceaccount.com",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
	f := serve(t, func(f *fake, w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		bob := `{"kind": "admin#directory#user", "id": "3", "primaryEmail": "bob@example.net", "suspended": false, "archived": false, "isMailboxSetup": true, "aliases": ["bob@example.org"]}`
		more := `"nextPageToken": "p2", `
		switch f.how {
		case "twice":
			bob = strings.Replace(bob, `"3"`, `"1"`, 1)
		case "nameless":
			bob = `{"kind": "admin#directory#user", "id": "3"}`
		}
		switch {
		case r.URL.Path == "/token":
			if err := checkJWT(r.Form, &key.PublicKey, f.URL+"/token"); err != nil {
				w.WriteHeader(400)
				t.Error(err)
				return
			}
			if f.how == "undelegated" {
				w.WriteHeader(401)
				fmt.Fprint(w, `{"error": "unauthorized_client", "error_description": "Client is unauthorized to retrieve access tokens using this method"}`)
				return
			}
			f.token(w)
		case !f.known(r):
			w.WriteHeader(401)
			fmt.Fprintf(w, googleError, 401, "authError", "Invalid Credentials")
		case q.Get("customer") != "my_customer":
			w.WriteHeader(400)
		case f.fault(w, 2, googleError):
		case r.URL.Path == "/admin/directory/v1/users" && f.how == "nobody":
			answer(w, `{"kind": "admin#directory#users", "etag": "e"}`)
		case r.URL.Path == "/admin/directory/v1/users" && q.Get("pageToken") == "" && q.Get("maxResults") == "500":
			answer(w, `{"kind": "admin#directory#users", "etag": "e", %s"users": [
				{"kind": "admin#directory#user", "id": "1", "primaryEmail": "alice@example.org", "suspended": false, "aliases": ["a@example.org"], "nonEditableAliases": ["alice@example.org.test-google-a.com"]},
				{"kind": "admin#directory#user", "id": "2", "primaryEmail": "gone@example.org", "suspended": true, "suspensionReason": "ADMIN"}]}`, more)
		case r.URL.Path == "/admin/directory/v1/users" && q.Get("pageToken") == "p2":
			if f.how != "loop" {
				more = ""
			}
			answer(w, `{"kind": "admin#directory#users", "etag": "e", %s"users": [%s]}`, more, bob)
		case r.URL.Path == "/admin/directory/v1/groups" && q.Get("maxResults") == "200":
			answer(w, `{"kind": "admin#directory#groups", "etag": "e", "groups": [{"kind": "admin#directory#group", "id": "g1", "email": "team@example.org", "name": "team", "directMembersCount": "2", "adminCreated": true, "aliases": ["all@example.org"]}]}`)
		default:
			w.WriteHeader(404)
		}
	})
	args := []string{"google", "example.org", "--key-file", file(t, string(account)), "--admin", "admin@example.org", "--url", f.URL, "--token-url", f.URL + "/token"}
	const want = "a@example.org alice@example.org all@example.org bob@example.org team@example.org"
	wants(t, want, args...)
	for _, word := range []string{"429", "503", "slower", "expired", "cut"} {
		f.next(word)
		wants(t, want, args...)
	}
	for word, reason := range map[string]string{
		"403": "403 Forbidden '403: Insufficient privileges", "revoked": "401 Unauthorized '401: ", "other": "isn't a list of users", "loop": "no end", "twice": "comes twice",
		"nameless": "lacks 'primaryEmail'", "nobody": "no users", "undelegated": "401 Unauthorized 'unauthorized_client: Client is unauthorized",
	} {
		f.next(word)
		fails(t, reason, args...)
	}
	f.next("")
	fails(t, "can't sign", "google", "example.org", "--key-file", file(t, `{"client_email": "x", "private_key": "none"}`), "--admin", "a@example.org", "--url", f.URL, "--token-url", f.URL+"/token")
}

// checkJWT verifies an assertion as Google's token endpoint does.
func checkJWT(form url.Values, key *rsa.PublicKey, aud string) error {
	parts := strings.Split(form.Get("assertion"), ".")
	if form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || len(parts) != 3 {
		return fmt.Errorf("bad request %v", form)
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig); err != nil {
		return err
	}
	var claims struct {
		Iss, Sub, Aud, Scope string
		Iat, Exp             int64
	}
	b, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(b, &claims)
	}
	if err == nil && (claims.Iss != "sa@p.iam.gserviceaccount.com" || claims.Sub != "admin@example.org" || claims.Aud != aud || claims.Exp-claims.Iat > 3600 || !strings.Contains(claims.Scope, "user.readonly")) {
		err = fmt.Errorf("bad claims %+v", claims)
	}
	return err
}

func TestStalwart(t *testing.T) {
	f := serve(t, func(f *fake, w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		total := 3
		if f.how == "changed" {
			total = 4
		}
		switch {
		case r.Header.Get("Authorization") != "Bearer api_key":
			w.WriteHeader(401)
		case r.URL.Path != "/api/principal" || q.Get("types") != "individual,group,list":
			w.WriteHeader(404)
		case f.fault(w, 2, `{}`):
		case q.Get("page") == "1":
			answer(w, `{"data": {"items": [{"id": 1, "type": "individual", "name": "alice", "emails": ["alice@example.org", "@example.org"]}, {"id": 2, "type": "group", "name": "team", "emails": "team@example.org"}], "total": %d}}`, total)
		case q.Get("page") == "2":
			name := "all"
			if f.how == "twice" {
				name = "team"
			}
			answer(w, `{"data": {"items": [{"id": 3, "type": "list", "name": "%s", "emails": ["all@example.org"]}], "total": %d}}`, name, total)
		default:
			answer(w, `{"data": {"items": [], "total": %d}}`, total)
		}
	})
	args := []string{"stalwart", "example.org", "--url", f.URL, "--key-file", file(t, "api_key")}
	wants(t, "alice@example.org all@example.org team@example.org", args...)
	f.next("other")
	fails(t, "answer", args...)
	f.next("changed")
	fails(t, "3 of 4", args...)
	f.next("twice")
	fails(t, "2 of 3", args...)
}

// TestStalwartJMAP lists a Stalwart of 0.16 or later, as its schema reference has the
// objects: domains, accounts and lists by query and get, each with aliases.
func TestStalwartJMAP(t *testing.T) {
	objects := map[string][]string{
		"Domain":      {`{"id": "d1", "name": "example.org", "aliases": ["example.com"], "isEnabled": true, "catchAllAddress": null}`, `{"id": "d2", "name": "example.net", "aliases": {}}`},
		"MailingList": {`{"id": "m1", "name": "all", "domainId": "d1", "emailAddress": "all@example.org", "aliases": {"0": {"name": "everybody", "domainId": "d1", "enabled": true}}, "recipients": ["x@example.net"]}`},
	}
	for i := range 150 {
		objects["Account"] = append(objects["Account"], fmt.Sprintf(`{"id": "a%d", "@type": "User", "name": "u%03d", "domainId": "d1", "emailAddress": "u%03d@example.org", "aliases": [{"name": "x%d", "domainId": "d2", "enabled": true}]}`, i, i, i, i))
	}
	objects["Account"][0] = `{"id": "a0", "@type": "Group", "name": "u000", "domainId": "d1", "emailAddress": "u000@example.org", "aliases": [{"name": "al", "domainId": "d1"}, {"name": "old", "domainId": "d1", "enabled": false}]}`
	f := serve(t, func(f *fake, w http.ResponseWriter, r *http.Request) {
		var call struct {
			Using       []string
			MethodCalls [][]json.RawMessage
		}
		_ = json.NewDecoder(r.Body).Decode(&call)
		if r.Header.Get("Authorization") != "Bearer api_key" {
			w.WriteHeader(401)
			return
		}
		if r.URL.Path != "/api" || strings.Join(call.Using, " ") != "urn:ietf:params:jmap:core urn:stalwart:jmap" || len(call.MethodCalls) != 1 {
			w.WriteHeader(404)
			return
		}
		var method string
		var args struct {
			Position, Limit int
			CalculateTotal  bool
			IDs             []string
		}
		_ = json.Unmarshal(call.MethodCalls[0][0], &method)
		_ = json.Unmarshal(call.MethodCalls[0][1], &args)
		kind, verb, _ := strings.Cut(strings.TrimPrefix(method, "x:"), "/")
		id := func(text string) (id string) {
			var o struct{ ID string }
			_ = json.Unmarshal([]byte(text), &o)
			return o.ID
		}
		var found []string
		switch {
		case f.how != "refused" && f.fault(w, 4, `{}`):
			return
		case f.how == "refused" && method == "x:Account/get":
			answer(w, `{"methodResponses": [["error", {"type": "forbidden"}, "c"]]}`)
			return
		case verb == "query":
			all := objects[kind]
			for _, o := range all[min(args.Position, len(all)):min(args.Position+args.Limit, len(all))] {
				found = append(found, fmt.Sprintf("%q", id(o)))
			}
			total := len(all)
			if f.how == "changed" && args.Position > 0 {
				total++
			}
			answer(w, `{"methodResponses": [["%s", {"ids": [%s], "total": %d, "position": %d, "queryState": "1"}, "c"]], "sessionState": "1"}`, method, strings.Join(found, ","), total, args.Position)
		case verb == "get":
			for _, o := range objects[kind] {
				if slices.Contains(args.IDs, id(o)) && !(f.how == "gone" && id(o) == "a7") {
					found = append(found, o)
				}
			}
			answer(w, `{"methodResponses": [["%s", {"list": [%s], "notFound": [], "state": "1"}, "c"]], "sessionState": "1"}`, method, strings.Join(found, ","))
		}
	})
	args := []string{"stalwart_jmap", "example.org", "--url", f.URL, "--key-file", file(t, "api_key")}
	want := []string{"al@example.org", "all@example.org", "everybody@example.org"}
	for i := range 150 {
		want = append(want, fmt.Sprintf("u%03d@example.org", i))
	}
	wants(t, strings.Join(want, " "), args...)
	args[1] = "example.com" // an alias of the domain
	wants(t, strings.ReplaceAll(strings.Join(want, " "), "example.org", "example.com"), args...)
	for how, reason := range map[string]string{"refused": "forbidden", "changed": "changed meanwhile", "gone": "changed meanwhile", "other": "answer", "403": "403", "garbage": "no JSON"} {
		f.next(how)
		fails(t, reason, args...)
	}
	fails(t, "401", "stalwart_jmap", "example.org", "--url", f.URL, "--key-file", file(t, "wrong"))
}

func TestMox(t *testing.T) {
	f := serve(t, func(f *fake, w http.ResponseWriter, r *http.Request) {
		var call struct{ Params []string }
		_ = json.NewDecoder(r.Body).Decode(&call)
		cookie := func(name string) bool { c, err := r.Cookie(name); return err == nil && c.Value == name }
		ready := cookie("webadminsession") && r.Header.Get("x-mox-csrf") == "csrf"
		switch {
		case r.URL.Path == "/admin/api/LoginPrep":
			http.SetCookie(w, &http.Cookie{Name: "webadminlogin", Value: "webadminlogin", Path: "/admin"})
			answer(w, `{"result": "logintoken"}`)
		case r.URL.Path == "/admin/api/Login" && cookie("webadminlogin") && strings.Join(call.Params, " ") == "logintoken pass":
			http.SetCookie(w, &http.Cookie{Name: "webadminsession", Value: "webadminsession", Path: "/admin"})
			answer(w, `{"result": "csrf"}`)
		case r.URL.Path == "/admin/api/Login":
			answer(w, `{"error": {"code": "user:loginFailed", "message": "invalid credentials"}}`)
		case !ready:
			answer(w, `{"error": {"code": "user:noAuth", "message": "no session"}}`)
		case f.fault(w, 1, `{}`):
		case r.URL.Path == "/admin/api/DomainLocalparts" && f.how == "old":
			answer(w, `{"result": {"alice": "alice", "": "alice"}}`)
		case r.URL.Path == "/admin/api/DomainLocalparts" && strings.Join(call.Params, " ") == "example.org":
			answer(w, `{"result": [{"alice": "alice", "": "alice", "a.b": "alice"}, {"team": {"LocalpartStr": "team"}}]}`)
		default:
			answer(w, `{"result": null}`)
		}
	})
	args := []string{"mox", "example.org", "--url", f.URL + "/admin", "--password-file", file(t, "pass\n")}
	wants(t, "a.b@example.org alice@example.org team@example.org", args...)
	f.next("old")
	wants(t, "alice@example.org", args...)
	f.next("other")
	fails(t, "another form", args...)
	fails(t, "loginFailed", "mox", "example.org", "--url", f.URL+"/admin", "--password-file", file(t, "wrong"))
}

func TestProxmox(t *testing.T) {
	f := serve(t, func(f *fake, w http.ResponseWriter, r *http.Request) {
		c, _ := r.Cookie("PMGAuthCookie")
		switch path := strings.TrimPrefix(r.URL.Path, "/api2/json"); {
		case path == "/access/ticket" && r.Form.Get("username") == "push@pmg" && r.Form.Get("password") == "pass":
			if f.how == "second" {
				answer(w, `{"data": {"ticket": "PMG:!tfa!%%7B%%7D:65::x", "CSRFPreventionToken": "y", "username": "push@pmg", "role": "audit", "NeedTFA": 1}}`)
				return
			}
			answer(w, `{"data": {"ticket": "PMG:push@pmg:65::x", "CSRFPreventionToken": "y", "username": "push@pmg", "role": "audit"}}`)
		case c == nil || c.Value != url.QueryEscape("PMG:push@pmg:65::x"):
			w.WriteHeader(401)
		case f.fault(w, 4, `{}`):
		case path == "/config/domains":
			answer(w, `{"data": [{"domain": "example.org", "comment": ""}]}`)
		case path == "/config/ldap":
			answer(w, `{"data": [{"profile": "ad", "disable": 0, "server1": "192.0.2.1", "mode": "ldaps", "ucount": 2, "mcount": 3, "gcount": 0}, {"profile": "old", "disable": 1, "server1": "192.0.2.2", "mode": "ldap"}]}`)
		case path == "/config/ldap/ad/users":
			answer(w, `{"data": [{"dn": "cn=a", "account": "alice", "pmail": "alice@example.org"}, {"dn": "cn=b", "account": "bob", "pmail": "bob@example.org"}]}`)
		case path == "/config/ldap/ad/users/alice@example.org":
			answer(w, `{"data": [{"primary": 1, "email": "alice@example.org"}, {"primary": 0, "email": "a@example.org"}]}`)
		case path == "/config/ldap/ad/users/bob@example.org":
			answer(w, `{"data": [{"primary": 1, "email": "bob@example.org"}]}`)
		default:
			w.WriteHeader(404)
		}
	})
	args := []string{"proxmox", "example.org", "--url", f.URL, "--user", "push@pmg", "--password-file", file(t, "pass")}
	wants(t, "a@example.org alice@example.org bob@example.org", args...)
	f.next("other")
	fails(t, "answer", args...)
	args[1] = "example.net"
	f.next("")
	fails(t, "no relay domain", args...)
	f.next("second")
	fails(t, "second factor", args...)
}

// TestLDAP lists a real OpenLDAP, in pages, and one that cuts the search off.
func TestLDAP(t *testing.T) {
	var ldif strings.Builder
	var want []string
	for i := range 1200 {
		fmt.Fprintf(&ldif, "dn: uid=u%04d,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: u%04d\ncn: u\nsn: u\nmail: U%04d@example.org\n\n", i, i, i)
		want = append(want, fmt.Sprintf("u%04d@example.org", i))
	}
	server := listertest.OpenLDAP(t, ldif.String(), 2000)
	args := []string{"ldap", "example.org", "--url", "ldap://" + server.Address(), "--base", "dc=example,dc=org", "--no-tls", "--bind-dn", "cn=reader,dc=example,dc=org", "--password-file", file(t, listertest.Password)}
	wants(t, strings.Join(want, " "), args...)
	fails(t, "ends with 32", "ldap", "example.org", "--url", "ldap://"+server.Address(), "--base", "dc=nobody", "--no-tls", "--bind-dn", "cn=reader,dc=example,dc=org", "--password-file", file(t, listertest.Password))
	server.Stop()
	fails(t, "ends with", args...)
}

// TestLDAPRanges: Active Directory gives at most 1500 values of an attribute at once,
// with a range in its name (MS-ADTS 3.1.1.3.1.3.3). ldapsearch is a stand-in that
// answers so.
func TestLDAPRanges(t *testing.T) {
	dir := t.TempDir()
	script := `#!/bin/sh
case "$*" in
*"proxyAddresses;range=2-*") printf 'dn:: Y249YixkYz14\nproxyAddresses;range=2-3: smtp:c@example.org\nproxyAddresses;range=2-3: smtp:d@example.org\n\n' ;;
*"proxyAddresses;range=4-*") printf 'dn: cn=b,dc=x\nproxyAddresses;range=%s: smtp:e@example.org\n\n' "${LAST:-4-*}" ;;
*) printf 'dn: cn=a,dc=x\nproxyAddresses: SMTP:x@example.org\n\ndn:: Y249YixkYz14\nproxyAddresses;range=0-1: SMTP:a@example.org\nproxyAddresses;range=0-1: x500:/o=b\n\n' ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "ldapsearch"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	args := []string{"ldap", "example.org", "--url", "ldaps://x", "--base", "dc=x", "--bind-dn", "cn=reader", "--password-file", file(t, "secret"), "--attribute", "proxyAddresses"}
	wants(t, "a@example.org c@example.org d@example.org e@example.org x@example.org", args...)
	t.Setenv("LAST", "0-1")
	fails(t, "another range", args...)
}

func TestHelp(t *testing.T) {
	for _, kind := range []string{"microsoft365", "google", "stalwart", "stalwart_jmap", "mox", "proxmox", "ldap"} {
		if out, stderr, code := list(t, kind, "--help"); code != 0 || !strings.Contains(out, "domain") {
			t.Errorf("%s: %d %s", kind, code, stderr)
		}
	}
}
