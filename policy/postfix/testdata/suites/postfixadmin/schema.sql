CREATE TABLE alias (
 address varchar(255) COLLATE latin1_general_ci NOT NULL, goto text COLLATE latin1_general_ci NOT NULL, domain varchar(255) COLLATE latin1_general_ci NOT NULL,
 created datetime NOT NULL default '2000-01-01 00:00:00', modified datetime NOT NULL default '2000-01-01 00:00:00', active tinyint(1) NOT NULL default '1',
 PRIMARY KEY (address), KEY domain (domain)
) CHARACTER SET latin1 COLLATE latin1_general_ci;
CREATE TABLE alias_domain (
 alias_domain varchar(255) CHARACTER SET latin1 COLLATE latin1_general_ci NOT NULL default '', target_domain varchar(255) CHARACTER SET latin1 COLLATE latin1_general_ci NOT NULL default '',
 created datetime NOT NULL default '2000-01-01 00:00:00', modified datetime NOT NULL default '2000-01-01 00:00:00', active tinyint(1) NOT NULL default '1',
 PRIMARY KEY (alias_domain), KEY active (active), KEY target_domain (target_domain)
) CHARACTER SET latin1 COLLATE latin1_general_ci;
CREATE TABLE domain (
 domain varchar(255) COLLATE latin1_general_ci NOT NULL, description varchar(255) CHARACTER SET utf8mb4 NOT NULL, aliases int(10) NOT NULL default '0',
 mailboxes int(10) NOT NULL default '0', maxquota bigint(20) NOT NULL default '0', quota bigint(20) NOT NULL default '0',
 transport varchar(255) COLLATE latin1_general_ci NOT NULL, backupmx tinyint(1) NOT NULL default '0', active tinyint(1) NOT NULL default '1', PRIMARY KEY (domain)
) CHARACTER SET latin1 COLLATE latin1_general_ci;
CREATE TABLE mailbox (
 username varchar(255) COLLATE latin1_general_ci NOT NULL, password varchar(255) COLLATE latin1_general_ci NOT NULL, name varchar(255) CHARACTER SET utf8mb4 NOT NULL,
 maildir varchar(255) COLLATE latin1_general_ci NOT NULL, quota bigint(20) NOT NULL default '0', local_part varchar(255) COLLATE latin1_general_ci NOT NULL,
 domain varchar(255) COLLATE latin1_general_ci NOT NULL, active tinyint(1) NOT NULL default '1', password_expiry timestamp NOT NULL default '2000-01-01',
 PRIMARY KEY (username), KEY domain (domain)
) CHARACTER SET latin1 COLLATE latin1_general_ci;
