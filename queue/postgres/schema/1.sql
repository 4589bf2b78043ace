-- A version of the schema is one file of this directory, never changed once it
-- was released. Each runs once, in one transaction with those before it.

CREATE TABLE understudy.meta (
	one     boolean PRIMARY KEY DEFAULT true CHECK (one), -- there is one row
	version integer NOT NULL
);
INSERT INTO understudy.meta (version) VALUES (1);

-- A member's queue. Who holds it may change it, and nobody else: each
-- transaction that does so locks this row and compares the epoch.
CREATE TABLE understudy.spool (
	id          integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name        text NOT NULL UNIQUE,      -- the member's
	epoch       bigint NOT NULL DEFAULT 0, -- rises with each holder, and each time that it connects anew
	holder      text NOT NULL DEFAULT '',  -- the member that holds it
	token       text NOT NULL DEFAULT '',  -- the holder's process, '' for none
	lease_until timestamptz NOT NULL DEFAULT '-infinity' -- by the clock of the database
) WITH (fillfactor = 50);

-- Keys, records and small bodies: see package queue/store.
CREATE TABLE understudy.kv (
	spool integer NOT NULL,
	key   bytea NOT NULL,
	value bytea NOT NULL,
	PRIMARY KEY (spool, key)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.5);
ALTER TABLE understudy.kv ALTER COLUMN value SET STORAGE EXTERNAL;

-- Large bodies, in pieces.
CREATE TABLE understudy.body (
	spool integer NOT NULL,
	id    text COLLATE "C" NOT NULL,
	piece integer NOT NULL,
	data  bytea NOT NULL,
	PRIMARY KEY (spool, id, piece)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE understudy.body ALTER COLUMN data SET STORAGE EXTERNAL;
