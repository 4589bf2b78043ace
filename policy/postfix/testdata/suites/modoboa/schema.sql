CREATE TABLE transport_transport (
 id serial PRIMARY KEY, pattern varchar(253) NOT NULL UNIQUE, service varchar(30) NOT NULL, next_hop varchar(100) NOT NULL, enabled boolean NOT NULL DEFAULT true, _settings jsonb NOT NULL DEFAULT '{}'
);
CREATE TABLE admin_domain (
 id serial PRIMARY KEY, name varchar(253) NOT NULL UNIQUE, quota integer NOT NULL DEFAULT 0, enabled boolean NOT NULL, type varchar(20) NOT NULL, transport_id integer REFERENCES transport_transport
);
CREATE INDEX admin_domain_name_like ON admin_domain (name varchar_pattern_ops);
CREATE TABLE admin_domainalias (id serial PRIMARY KEY, name varchar(100) NOT NULL UNIQUE, target_id integer NOT NULL REFERENCES admin_domain, enabled boolean NOT NULL);
CREATE TABLE core_user (
 id serial PRIMARY KEY, username varchar(254) NOT NULL UNIQUE, email varchar(254) NOT NULL, is_active boolean NOT NULL, password varchar(256) NOT NULL DEFAULT ''
);
CREATE TABLE admin_mailbox (
 id serial PRIMARY KEY, address varchar(252) NOT NULL, quota integer NOT NULL DEFAULT 0, domain_id integer NOT NULL REFERENCES admin_domain,
 user_id integer NOT NULL UNIQUE REFERENCES core_user, is_send_only boolean NOT NULL DEFAULT false
);
CREATE INDEX admin_mailbox_domain_id ON admin_mailbox (domain_id);
CREATE TABLE admin_mailboxoperation (id serial PRIMARY KEY, mailbox_id integer REFERENCES admin_mailbox, type varchar(20) NOT NULL, argument text NOT NULL);
CREATE TABLE admin_alias (
 id serial PRIMARY KEY, address varchar(254) NOT NULL, domain_id integer REFERENCES admin_domain, enabled boolean NOT NULL, internal boolean NOT NULL DEFAULT false,
 description text NOT NULL DEFAULT '', expire_at timestamp with time zone, UNIQUE (address, internal)
);
CREATE TABLE modoboa_admin_aliasrecipient (
 id serial PRIMARY KEY, address varchar(254) NOT NULL, alias_id integer NOT NULL REFERENCES admin_alias, r_mailbox_id integer REFERENCES admin_mailbox, r_alias_id integer REFERENCES admin_alias
);
CREATE INDEX modoboa_admin_aliasrecipient_alias_id ON modoboa_admin_aliasrecipient (alias_id);
CREATE TABLE relaydomains_recipientaccess (id serial PRIMARY KEY, pattern varchar(254) NOT NULL UNIQUE, action varchar(40) NOT NULL);
CREATE TABLE admin_senderaddress (id serial PRIMARY KEY, address varchar(254) NOT NULL, mailbox_id integer NOT NULL REFERENCES admin_mailbox);
