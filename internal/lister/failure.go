package lister

import (
	"errors"
	"strings"

	"github.com/go-ldap/ldap/v3"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"
)

// connectFailure says which setting keeps a connection from standing, "" for
// the one that names the hosts, and what to do.
func connectFailure(err error) (setting, remedy string) {
	var my *mysql.MySQLError
	var pg *pgconn.PgError
	var dir *ldap.Error
	switch {
	case strings.Contains(err.Error(), "x509: "): // LDAP's StartTLS keeps the text only
		return "the settings tls_*", "name the authority's certificate, or the host as its certificate does"
	case errors.As(err, &my):
		return mysqlFailure(my.Number)
	case errors.As(err, &pg):
		return pgsqlFailure(pg.Code)
	case errors.As(err, &dir) && dir.ResultCode != ldap.ErrorNetwork:
		return ldapFailure(dir.ResultCode)
	}
	return "", "start the server, let this host reach it, or correct the setting"
}

const (
	askAdmin  = "ask its administrator what is wrong"
	logIn     = "user and password"
	fixLogin  = "correct them, or let this user log in from this host"
	fixDBName = "name a database that is there and that user may read"
	fixQuery  = "correct the query, or let user read what it selects from"
)

// mysqlFailure goes by the numbers of mysqld_error.h.
func mysqlFailure(number uint16) (setting, remedy string) {
	switch number {
	case 1045, 1698, 1251, 1275, 1130:
		return logIn, fixLogin
	case 1044, 1049, 1046:
		return "dbname", fixDBName
	case 1040, 1203, 1226:
		return "hosts", "let the server take more connections"
	case 1115, 1273:
		return "charset", "name a character set of this server"
	case 1792:
		return "query", "list with a SELECT that changes nothing"
	}
	return "query", fixQuery
}

// pgsqlFailure goes by the classes of SQLSTATE.
func pgsqlFailure(code string) (setting, remedy string) {
	switch code[:min(2, len(code))] {
	case "28":
		return logIn, fixLogin + " (pg_hba.conf)"
	case "3D":
		return "dbname", fixDBName
	case "53", "57":
		return "hosts", "let the server answer: " + askAdmin
	case "25":
		return "query", "list with a SELECT that changes nothing"
	}
	return "query", fixQuery
}

// ldapFailure goes by the result codes of RFC 4511 §4.1.9.
func ldapFailure(code uint16) (setting, remedy string) {
	switch code {
	case ldap.LDAPResultInvalidCredentials, ldap.LDAPResultInappropriateAuthentication, ldap.LDAPResultAuthMethodNotSupported:
		return "bind_dn and bind_pw", "correct them"
	case ldap.LDAPResultConfidentialityRequired, ldap.LDAPResultStrongAuthRequired:
		return "start_tls", "set start_tls = yes, or use an ldaps:// URL"
	case ldap.LDAPResultInsufficientAccessRights:
		return "bind_dn", "let bind_dn search below search_base"
	case ldap.LDAPResultNoSuchObject, ldap.LDAPResultInvalidDNSyntax, ldap.LDAPResultReferral:
		return "search_base", "name an entry of this directory that bind_dn may see"
	case ldap.LDAPResultSizeLimitExceeded, ldap.LDAPResultAdminLimitExceeded, ldap.LDAPResultTimeLimitExceeded:
		return "server_host", "let bind_dn list everything (olcLimits: size.prtotal=unlimited)"
	case ldap.LDAPResultProtocolError:
		return "start_tls", askAdmin
	case ldap.ErrorFilterCompile, ldap.LDAPResultInappropriateMatching, ldap.LDAPResultFilterError:
		return "query_filter", "write a filter as RFC 4515 has it"
	}
	return "server_host", askAdmin
}
