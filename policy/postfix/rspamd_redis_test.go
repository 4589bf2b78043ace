package postfix

import (
	"encoding/json"
	"fmt"
	"testing"
)

// TestRspamdRedis: where the greylisting's keys are, as lua_redis finds out: the module's own
// servers come before those that [redis] has for it, and those before everybody's; what one lacks the next says.
func TestRspamdRedis(t *testing.T) {
	for _, tt := range []struct{ name, config, want string }{
		{"none", `{"greylist":{}}`, "none"},
		{"everybody's", `{"greylist":{},"redis":{"servers":"localhost","password":"p","db":2}}`, "[localhost:6379] user  password p db 2 tls false"},
		{"to read from", `{"greylist":{},"redis":{"servers":"a","read_servers":"b:1,c"}}`, "[b:1 c:6379] user  password  db  tls false"},
		{"as a list", `{"greylist":{},"redis":{"servers":["a:1","[2001:db8::1]:2:10"]}}`, "[a:1 [2001:db8::1]:2] user  password  db  tls false"},
		{"with a rotation", `{"greylist":{},"redis":{"servers":"master-slave:a:1:10;b:2:1"}}`, "[a:1 b:2] user  password  db  tls false"},
		{"at a path", `{"greylist":{},"redis":{"servers":"/run/redis/s.sock:10","password":12345}}`, "[/run/redis/s.sock] user  password 12345 db  tls false"},
		{"of [redis] for it", `{"greylist":{},"redis":{"servers":"a","password":"p","greylist":{"servers":"b","dbname":"3"}}}`, "[b:6379] user  password p db 3 tls false"},
		{"its own", `{"greylist":{"servers":"d","database":"4"},"redis":{"servers":"a","greylist":{"servers":"b","username":"u"}}}`, "[d:6379] user u password  db 4 tls false"},
		{"its own section", `{"greylist":{"servers":"d","redis":{"servers":"e","password":"q"}},"redis":{"servers":"a","password":"p"}}`, "[e:6379] user  password q db  tls false"},
		{"not for it", `{"greylist":{},"redis":{"servers":"a","disabled_modules":["greylist"]}}`, "none"},
		{"by TLS", `{"greylist":{},"redis":{"servers":"a","ssl":true}}`, "[a:6379] user  password  db  tls true"},
	} {
		var c rspamdConfig
		if err := json.Unmarshal([]byte(tt.config), &c); err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := "none"
		if r := c.redis(); r != nil {
			got = fmt.Sprintf("%s user %s password %s db %s tls %t", r.addresses(), r.Username, r.Password, r.DB, r.SSL)
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
