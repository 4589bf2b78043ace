CREATE TABLE domain (
 domain VARCHAR(255) NOT NULL DEFAULT '', description TEXT NOT NULL DEFAULT '', transport VARCHAR(255) NOT NULL DEFAULT 'dovecot',
 backupmx INT2 NOT NULL DEFAULT 0, expired TIMESTAMP NOT NULL DEFAULT '9999-12-31 01:01:01', active INT2 NOT NULL DEFAULT 1, PRIMARY KEY (domain)
);
CREATE INDEX idx_domain_backupmx ON domain (backupmx);
CREATE INDEX idx_domain_active ON domain (active);
CREATE TABLE alias_domain (
 alias_domain VARCHAR(255) NOT NULL, target_domain VARCHAR(255) NOT NULL, active INT2 NOT NULL DEFAULT 1, PRIMARY KEY (alias_domain)
);
CREATE INDEX idx_alias_domain_target_domain ON alias_domain (target_domain);
CREATE TABLE forwardings (
 id SERIAL PRIMARY KEY, address VARCHAR(255) NOT NULL DEFAULT '', forwarding VARCHAR(255) NOT NULL DEFAULT '', domain VARCHAR(255) NOT NULL DEFAULT '',
 dest_domain VARCHAR(255) NOT NULL DEFAULT '', is_maillist INT2 NOT NULL DEFAULT 0, is_list INT2 NOT NULL DEFAULT 0,
 is_forwarding INT2 NOT NULL DEFAULT 0, is_alias INT2 NOT NULL DEFAULT 0, active INT2 NOT NULL DEFAULT 1
);
CREATE INDEX idx_forwardings_address ON forwardings (address);
CREATE UNIQUE INDEX idx_forwardings_address_forwarding ON forwardings (address, forwarding);
CREATE INDEX idx_forwardings_domain ON forwardings (domain);
CREATE TABLE mailbox (
 username VARCHAR(255) NOT NULL, password VARCHAR(255) NOT NULL DEFAULT '', name VARCHAR(255) NOT NULL DEFAULT '',
 mailboxformat VARCHAR(50) NOT NULL DEFAULT 'maildir', storagebasedirectory VARCHAR(255) NOT NULL DEFAULT '', storagenode VARCHAR(255) NOT NULL DEFAULT '',
 maildir VARCHAR(255) NOT NULL DEFAULT '', quota INT8 NOT NULL DEFAULT 0, domain VARCHAR(255) NOT NULL DEFAULT '',
 transport VARCHAR(255) NOT NULL DEFAULT '', enabledeliver INT2 NOT NULL DEFAULT 1, active INT2 NOT NULL DEFAULT 1, PRIMARY KEY (username)
);
CREATE INDEX idx_mailbox_domain ON mailbox (domain);
CREATE TABLE maillists (
 id SERIAL PRIMARY KEY, address VARCHAR(255) NOT NULL DEFAULT '', domain VARCHAR(255) NOT NULL DEFAULT '', transport VARCHAR(255) NOT NULL DEFAULT '',
 mlid VARCHAR(36) NOT NULL DEFAULT '', active INT2 NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX idx_maillists_address ON maillists (address);
CREATE UNIQUE INDEX idx_maillists_mlid ON maillists (mlid);
