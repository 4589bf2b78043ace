CREATE TABLE domains (id INT PRIMARY KEY, name VARCHAR(190) NOT NULL, kind VARCHAR(20) NOT NULL, target VARCHAR(190), active INT NOT NULL);
CREATE INDEX domains_name ON domains (name);
CREATE TABLE boxes (id INT PRIMARY KEY, domain_id INT NOT NULL, local_part VARCHAR(100) NOT NULL, address VARCHAR(190) NOT NULL, maildir VARCHAR(200), active INT NOT NULL);
CREATE INDEX boxes_address ON boxes (address);
CREATE INDEX boxes_local ON boxes (local_part);
CREATE TABLE redirects (id INT PRIMARY KEY, source VARCHAR(190) NOT NULL, local_part VARCHAR(100), domain VARCHAR(190) NOT NULL, dest VARCHAR(500), prio INT NOT NULL, active INT NOT NULL);
CREATE INDEX redirects_source ON redirects (source);
CREATE TABLE odd (id INT PRIMARY KEY, padded CHAR(190) COLLATE RTRIM, octets BLOB, other NUMERIC, num INTEGER, maildir VARCHAR(200));
