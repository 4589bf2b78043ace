package listertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// PostgreSQL starts one with a database "mail" and a user "reader" who may
// read what script makes. Its socket lies in Dir under the usual port's name.
func PostgreSQL(t testing.TB, script string) *Server {
	t.Helper()
	dir, owner := directory(t, "postgres")
	s := &Server{Dir: dir}
	data := filepath.Join(dir, "data")
	bin := filepath.Dir(program(t, "postgres", "/usr/lib/postgresql/*/bin/postgres"))
	pw := write(t, owner, filepath.Join(dir, "pw"), Password+"\n")
	run(t, owner, dir, "", filepath.Join(bin, "initdb"), "-D", data, "-A", "scram-sha-256", "--pwfile", pw, "-U", "admin", "-N", "-E", "UTF8", "--locale=C")
	cert, key := s.certificate(t, owner)
	s.Socket = filepath.Join(dir, ".s.PGSQL.5432")
	s.also = func() bool { // it listens before it can answer
		pid, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
		return err == nil && strings.Contains(string(pid), "ready")
	}
	s.start(t, owner, func(port int) []string {
		link(t, fmt.Sprintf(".s.PGSQL.%d", port), s.Socket)
		return []string{filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-h", "127.0.0.1", "-p", fmt.Sprint(port), "-F", "-c", "max_connections=300",
			"-c", "ssl=on", "-c", "ssl_cert_file=" + cert, "-c", "ssl_key_file=" + key}
	})
	s.script = func(t testing.TB, db, sql string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(bin, "psql"), "-h", dir, "-p", fmt.Sprint(s.Port), "-U", "admin", "-d", db, "-q", "-v", "ON_ERROR_STOP=1")
		cmd.Env = append(os.Environ(), "PGPASSWORD="+Password)
		cmd.Stdin = strings.NewReader(sql)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("psql: %v\n%s", err, out)
		}
	}
	quoted := strings.ReplaceAll(Password, "'", "''")
	s.script(t, "postgres", "CREATE ROLE reader LOGIN PASSWORD '"+quoted+"'")
	s.Database(t, "mail", script)
	return s
}

// MariaDB starts one with a database "mail" and a user "reader" who may read
// what script makes.
func MariaDB(t testing.TB, script string) *Server {
	t.Helper()
	dir, owner := directory(t, "mysql")
	s := &Server{Dir: dir, Socket: filepath.Join(dir, "sock")}
	data := filepath.Join(dir, "data")
	run(t, owner, dir, "", program(t, "mariadb-install-db", ""), "--no-defaults", "--datadir="+data, "--skip-test-db",
		"--auth-root-authentication-method=normal", "--innodb-log-file-size=8M")
	cert, key := s.certificate(t, owner)
	s.start(t, owner, func(port int) []string {
		return []string{program(t, "mariadbd", "/usr/sbin/mariadbd"), "--no-defaults", "--datadir=" + data, "--socket=" + s.Socket,
			"--bind-address=127.0.0.1", "--max-connections=400", fmt.Sprintf("--port=%d", port), "--pid-file=" + filepath.Join(dir, "pid"),
			"--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0",
			"--ssl-ca=" + s.CA, "--ssl-cert=" + cert, "--ssl-key=" + key}
	})
	s.script = func(t testing.TB, db, sql string) {
		t.Helper()
		run(t, nil, dir, sql, program(t, "mariadb", ""), "--no-defaults", "--default-character-set=utf8mb4", "-S", s.Socket, "-u", "root", db)
	}
	quoted := strings.NewReplacer(`\`, `\\`, "'", "''").Replace(Password)
	s.script(t, "mysql", "CREATE USER reader@'%' IDENTIFIED BY '"+quoted+"'")
	s.mysql = true
	s.Database(t, "mail", script)
	return s
}

// MailSchema has an object class for addresses beside mail.
const MailSchema = `attributetype ( 1.3.6.1.4.1.1466.344.1 NAME 'proxyAddresses' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
attributetype ( 1.3.6.1.4.1.1466.344.2 NAME 'mailAlias' EQUALITY caseIgnoreIA5Match SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
objectclass ( 1.3.6.1.4.1.1466.344.9 NAME 'mailBox' SUP top AUXILIARY MAY ( proxyAddresses $ mailAlias ) )
`

// Database makes one more database of a PostgreSQL or MariaDB. The user
// "reader" may read what script makes, and call its functions.
func (s *Server) Database(t testing.TB, name, script string) {
	t.Helper()
	if s.mysql {
		s.script(t, "mysql", "CREATE DATABASE "+name+" CHARACTER SET utf8mb4; GRANT SELECT, EXECUTE ON "+name+".* TO reader@'%'")
		s.script(t, name, script)
		return
	}
	s.script(t, "postgres", "CREATE DATABASE "+name)
	s.script(t, name, script+"\nGRANT SELECT ON ALL TABLES IN SCHEMA public TO reader;")
}

// OpenLDAP starts one with the suffix dc=example,dc=org and the entries of an
// LDIF. cn=reader,dc=example,dc=org, which needn't be an entry, may read all,
// up to limit entries; without a name nothing can be read. What schema defines,
// as slapd.conf(5) has it, or MailSchema, joins inetOrgPerson's; attributes are
// indexed.
func OpenLDAP(t testing.TB, ldif string, limit int, schema ...string) *Server {
	t.Helper()
	return openLDAP(t, ldif, limit, nil, "", schema)
}

// Provider starts an OpenLDAP that numbers its changes for replicas.
func Provider(t testing.TB, ldif string, limit int) *Server {
	t.Helper()
	return openLDAP(t, ldif, limit, nil, "overlay syncprov", nil)
}

// LoggingProvider starts one that remembers what was deleted, too.
func LoggingProvider(t testing.TB, ldif string, limit int) *Server {
	t.Helper()
	return openLDAP(t, ldif, limit, nil, "index entryUUID eq\noverlay syncprov\nsyncprov-sessionlog 1000", nil)
}

// NumberedOnce starts an OpenLDAP with the number of its last change, which it
// doesn't keep: slapadd wrote it.
func NumberedOnce(t testing.TB, ldif string, limit int) *Server {
	t.Helper()
	return openLDAP(t, ldif, limit, []string{"-w"}, "", nil)
}

func openLDAP(t testing.TB, ldif string, limit int, slapadd []string, overlay string, schema []string) *Server {
	t.Helper()
	module := ""
	if overlay != "" {
		module = "moduleload syncprov"
	}
	if len(schema) == 0 {
		schema = []string{MailSchema}
	}
	dir, owner := directory(t, "openldap")
	s := &Server{Dir: dir, Socket: filepath.Join(dir, "ldapi")}
	slapd := program(t, "slapd", "/usr/sbin/slapd")
	cert, key := s.certificate(t, owner)
	run(t, owner, dir, "", "mkdir", filepath.Join(dir, "data"))
	secret := write(t, nil, filepath.Join(dir, "secret"), Password)
	hash := strings.TrimSpace(run(t, nil, dir, "", program(t, "slappasswd", "/usr/sbin/slappasswd"), "-T", secret))
	conf := write(t, owner, filepath.Join(dir, "slapd.conf"), fmt.Sprintf(`include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
%[7]s
pidfile %[1]s/pid
modulepath /usr/lib/ldap
moduleload back_mdb
%[9]s
TLSCACertificateFile %[2]s
TLSCertificateFile %[3]s
TLSCertificateKeyFile %[4]s
database mdb
suffix "dc=example,dc=org"
directory %[1]s/data
dbnosync
maxsize 268435456
index objectClass,mail,cn,uid eq
%[8]s
rootdn "cn=admin,dc=example,dc=org"
rootpw %[5]s
limits dn.exact="cn=reader,dc=example,dc=org" size.soft=%[6]d size.hard=%[6]d size.prtotal=%[6]d
access to attrs=userPassword by anonymous auth
access to * by dn.exact="cn=reader,dc=example,dc=org" read
%[10]s
`, dir, s.CA, cert, key, hash, limit, strings.Join(schema, "\n"), indexes(schema), module, overlay))
	ldif = `dn: dc=example,dc=org
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: cn=reader,dc=example,dc=org
objectClass: person
cn: reader
sn: reader
userPassword: ` + hash + "\n\n" + ldif
	run(t, owner, dir, ldif, program(t, "slapadd", "/usr/sbin/slapadd"), append(slapadd, "-f", conf, "-q")...)
	s.start(t, owner, func(port int) []string {
		return []string{slapd, "-d", "0", "-f", conf, "-h", fmt.Sprintf("ldap://127.0.0.1:%d ldapi://%s", port, strings.ReplaceAll(s.Socket, "/", "%2F"))}
	})
	return s
}

// indexes are slapd's for the attributes of a schema that can be compared.
func indexes(schema []string) string {
	var b strings.Builder
	for _, s := range schema {
		for _, m := range regexp.MustCompile(`(?is)attributetype\s*\(\s*\S+\s+NAME\s+'(\w+)'(.*?)SYNTAX`).FindAllStringSubmatch(s, -1) {
			if strings.Contains(m[2], "EQUALITY") {
				fmt.Fprintf(&b, "index %s eq\n", m[1])
			}
		}
	}
	return b.String()
}

// Exec changes a database that PostgreSQL or MariaDB has started.
func (s *Server) Exec(t testing.TB, sql string) {
	t.Helper()
	s.script(t, "mail", sql)
}
