package config

import (
	"fmt"
	"slices"
)

// check examines combinations of keys.
func (r *reader) check() {
	c := r.cfg
	if c.IsPublisher {
		r.checkPublisher()
		return
	}
	if c.Primary.Address == "" && !r.failed("primary.address") {
		r.mistake("primary.address", `missing: where does accepted mail go? Add address = "mx1.example.org:25" under [primary]`)
	}
	r.checkIdentity("primary", c.Primary)
	r.checkPolicy()
	if (c.SMTP.TLSCert == "") != (c.SMTP.TLSKey == "") && !r.failed("smtp.tls_cert") && !r.failed("smtp.tls_key") {
		set, other := "smtp.tls_cert", "tls_key"
		if c.SMTP.TLSCert == "" {
			set, other = "smtp.tls_key", "tls_cert"
		}
		r.mistake(set, "is set without %s; set both, or neither for no STARTTLS", other)
	}
	r.checkPush()
	r.checkRoutes()
	told := func(p Primary) bool { return p.ByXClient() || p.ByProxy() }
	if c.Relay.AuthenticationResults && told(c.Primary) && !slices.ContainsFunc(c.Routes, func(rt Route) bool { return !told(rt.Primary) }) {
		r.mistake("relay.authentication_results", `is for servers that aren't told the client, and all of these are; set identity = "none" for one that can't be, or remove this line`)
	}
	r.checkWeb()
	r.checkStore()
}

// checkStore looks whether the keys of the queue's store go together.
func (r *reader) checkStore() {
	q := r.cfg.Queue
	switch {
	case q.Store == "postgres" && q.DSN == "" && !r.failed("queue.dsn"):
		r.mistake("queue.store", `"postgres" needs the key "dsn" under [queue]; add it, such as dsn = "postgres://understudy@db1.example.org,db2.example.org/understudy?sslmode=verify-full"`)
	case q.Store != "postgres" && q.DSN != "" && !r.failed("queue.store"):
		r.mistake("queue.dsn", `is for store = "postgres", and store is "leveldb"; add that line, or remove this one`)
	}
}

// checkIdentity looks whether a server is told the clients in one way.
func (r *reader) checkIdentity(path string, p Primary) {
	if !p.XClient && p.ByProxy() {
		r.mistake(path+".xclient", `is for identity = "xclient", and identity is "proxy"; remove this line`)
	}
}

func (r *reader) checkRoutes() {
	domain, name := map[string]string{}, map[string]string{"primary": "the section [primary]"}
	through := r.cfg.Queue.ReturnThrough
	if through != "primary" && !slices.ContainsFunc(r.cfg.Routes, func(rt Route) bool { return rt.Name == through }) && !r.failed("queue.return_through") {
		r.mistake("queue.return_through", `no [[route]] has the name %q; add one, or remove this line for "primary"`, through)
	}
	for i, rt := range r.cfg.Routes {
		path := fmt.Sprintf("route[%d]", i)
		if len(rt.Domains) == 0 && rt.Name != through && !r.failed(path+".domains") {
			r.mistake(path, `lacks the key "domains"; add it`)
		}
		r.checkIdentity(path, rt.Primary)
		if other, twice := name[rt.Name]; twice && rt.Name != "" {
			r.mistake(path+".name", "%q already names %s; choose another", rt.Name, other)
		}
		name[rt.Name] = path
		for _, d := range rt.Domains {
			if other, twice := domain[d]; twice {
				r.mistake(path+".domains", "%q is also in route %q; keep it in one", d, other)
			}
			domain[d] = rt.Name
		}
	}
}

// failed says that the key was there, but bad: then it is not missing too.
func (r *reader) failed(path string) bool {
	return slices.ContainsFunc(r.mistakes, func(m *Mistake) bool { return m.Key == path || m.Key == "primary" || m.Key == "policy" })
}
