INSERT INTO users (email, password) SELECT address, 'x' FROM gen_mailbox WHERE active = 1;
-- an alias may be there for permitted_senders alone
INSERT INTO aliases (source, destination, permitted_senders)
 SELECT address, CASE WHEN n % 13 = 0 THEN '' ELSE dest END, CASE WHEN n % 13 = 0 THEN 'a@b.example' END FROM gen_alias WHERE active = 1;
INSERT OR IGNORE INTO aliases (source, destination) SELECT '@' || name, '@' || target FROM gen_domain WHERE kind = 'alias' AND active = 1;
INSERT OR IGNORE INTO aliases (source, destination) SELECT address, 'elsewhere@far.example' FROM gen_mailbox WHERE n % 31 = 0;
INSERT OR IGNORE INTO auto_aliases (source, destination) SELECT 'postmaster@' || name, 'administrator@box.example' FROM gen_domain WHERE active = 1;
INSERT OR IGNORE INTO auto_aliases (source, destination) SELECT 'abuse@' || name, 'administrator@box.example' FROM gen_domain WHERE active = 1;
