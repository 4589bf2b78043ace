CREATE TABLE mail_domain (
 domain_id int(11) unsigned NOT NULL auto_increment, server_id int(11) unsigned NOT NULL default '0', domain varchar(255) NOT NULL default '',
 relay_host varchar(255) NOT NULL DEFAULT '', active enum('n','y') NOT NULL DEFAULT 'n',
 PRIMARY KEY (domain_id), KEY server_id (server_id,domain), KEY domain_active (domain,active)
) DEFAULT CHARSET=utf8;
CREATE TABLE mail_user (
 mailuser_id int(11) unsigned NOT NULL auto_increment, server_id int(11) unsigned NOT NULL default '0', email varchar(255) NOT NULL default '',
 login varchar(255) NOT NULL default '', cc text, forward_in_lda enum('n','y') NOT NULL default 'n', sender_cc varchar(255) NOT NULL default '',
 postfix enum('n','y') NOT NULL default 'y', greylisting enum('n','y') NOT NULL DEFAULT 'n', access enum('n','y') NOT NULL default 'y',
 disabledeliver enum('n','y') NOT NULL default 'n', disablesmtp enum('n','y') NOT NULL default 'n',
 PRIMARY KEY (mailuser_id), KEY server_id (server_id,email), KEY email_access (email,access)
) DEFAULT CHARSET=utf8;
CREATE TABLE mail_forwarding (
 forwarding_id int(11) unsigned NOT NULL auto_increment, server_id int(11) unsigned NOT NULL default '0', source varchar(255) NOT NULL DEFAULT '',
 destination text, type enum('alias','aliasdomain','forward','catchall') NOT NULL default 'alias', active enum('n','y') NOT NULL DEFAULT 'n',
 allow_send_as ENUM('n','y') NOT NULL DEFAULT 'n', greylisting enum('n','y') NOT NULL DEFAULT 'n',
 PRIMARY KEY (forwarding_id), KEY server_id (server_id, source), KEY type (type)
) DEFAULT CHARSET=utf8;
CREATE TABLE mail_transport (
 transport_id int(11) unsigned NOT NULL auto_increment, server_id int(11) unsigned NOT NULL default '0', domain varchar(255) NOT NULL default '',
 transport varchar(255) NOT NULL DEFAULT '', sort_order int(11) unsigned NOT NULL default '5', active enum('n','y') NOT NULL DEFAULT 'n',
 PRIMARY KEY (transport_id), KEY server_id (server_id,transport), KEY server_id_2 (server_id,domain)
) DEFAULT CHARSET=utf8;
CREATE TABLE mail_access (
 access_id int(11) unsigned NOT NULL auto_increment, server_id int(11) NOT NULL default '0', source varchar(255) NOT NULL DEFAULT '',
 access varchar(255) NOT NULL DEFAULT '', type set('recipient','sender','client') NOT NULL DEFAULT 'recipient', active enum('n','y') NOT NULL default 'y',
 PRIMARY KEY (access_id), UNIQUE KEY unique_source (server_id,source,type)
) DEFAULT CHARSET=utf8;
CREATE TABLE mail_relay_recipient (
 relay_recipient_id bigint(20) NOT NULL auto_increment, server_id int(11) NOT NULL default '0', source varchar(255), access varchar(255) NOT NULL DEFAULT 'OK',
 active varchar(255) NOT NULL default 'y', PRIMARY KEY (relay_recipient_id)
) DEFAULT CHARSET=utf8;
