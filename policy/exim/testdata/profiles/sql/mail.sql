CREATE TABLE domains (domain TEXT, active INTEGER);
INSERT INTO domains VALUES ('example.org', 1), ('example.net', 1), ('off.example', 0), ('Capital.example', 1);
CREATE TABLE backups (domain TEXT);
INSERT INTO backups VALUES ('backup.example');
CREATE TABLE bad (sender TEXT, reason TEXT);
INSERT INTO bad VALUES ('spammer@good.example', 'we know you'), ('news@good.example', '554 5.7.1 no news');
CREATE TABLE users (local TEXT, domain TEXT, quota INTEGER);
INSERT INTO users VALUES ('alice', 'example.org', 0), ('bob', 'example.org', 5), ('carol', 'example.net', 50), ('Dora', 'example.org', 0);
CREATE TABLE alias (address TEXT, goto TEXT, active INTEGER);
INSERT INTO alias VALUES ('info@example.org', 'alice@example.org', 1), ('list@example.org', 'alice@example.org,carol@example.net', 1),
 ('old@example.org', 'alice@example.org', 0), ('lost@example.org', 'nobody@example.org', 1), ('two@example.org', 'alice@example.org', 1),
 ('two@example.org', 'bob@example.org', 1), ('fail@example.org', ':fail: left', 1), ('@example.net', 'carol@example.net', 1), ('o''brien@example.org', 'alice@example.org', 1);
