CREATE TABLE mail_users (
 id int(11) NOT NULL auto_increment, email varchar(255) NOT NULL default '', username varchar(255) NOT NULL default '', uid int(11) NOT NULL default '0',
 homedir varchar(255) NOT NULL default '', maildir varchar(255) NOT NULL default '', postfix enum('Y','N') NOT NULL default 'Y', domainid int(11) NOT NULL default '0',
 customerid int(11) NOT NULL default '0', PRIMARY KEY (id), UNIQUE KEY email (email)
) ENGINE=InnoDB CHARSET=utf8 COLLATE=utf8_general_ci;
CREATE TABLE mail_virtual (
 id int(11) NOT NULL auto_increment, email varchar(255) NOT NULL default '', email_full varchar(255) NOT NULL default '', destination text, domainid int(11) NOT NULL default '0',
 customerid int(11) NOT NULL default '0', popaccountid int(11) NOT NULL default '0', iscatchall tinyint(1) unsigned NOT NULL default '0', PRIMARY KEY (id), KEY email (email)
) ENGINE=InnoDB CHARSET=utf8 COLLATE=utf8_general_ci;
CREATE TABLE panel_domains (
 id int(11) unsigned NOT NULL auto_increment, domain varchar(255) NOT NULL, customerid int(11) unsigned NOT NULL default '0', aliasdomain int(11) unsigned NULL,
 isemaildomain tinyint(1) NOT NULL default '0', deactivated tinyint(1) NOT NULL default '0', PRIMARY KEY (id), KEY customerid (customerid), KEY domain (domain)
) ENGINE=InnoDB CHARSET=utf8 COLLATE=utf8_general_ci ROW_FORMAT=DYNAMIC;
CREATE TABLE panel_customers (
 customerid int(11) unsigned NOT NULL auto_increment, loginname varchar(50) NOT NULL, email varchar(255) NOT NULL default '', deactivated tinyint(1) NOT NULL default '0',
 PRIMARY KEY (customerid), UNIQUE KEY loginname (loginname)
) ENGINE=InnoDB CHARSET=utf8 COLLATE=utf8_general_ci ROW_FORMAT=DYNAMIC;
