-- The generation of an issuer that an operator switched to. No row: the first one
-- of the configuration.
CREATE TABLE current_ca (
	issuer     TEXT    NOT NULL PRIMARY KEY,
	generation TEXT    NOT NULL,
	before     TEXT    NOT NULL,
	since      INTEGER NOT NULL
) STRICT;

-- Who was given the certificates of a next CA, by address.
CREATE TABLE next_ca_fetch (
	profile    TEXT    NOT NULL,
	generation TEXT    NOT NULL,
	source     TEXT    NOT NULL,
	first      INTEGER NOT NULL,
	last       INTEGER NOT NULL,
	count      INTEGER NOT NULL,
	PRIMARY KEY (profile, generation, source)
) STRICT, WITHOUT ROWID;

-- The address that asked for a certificate.
ALTER TABLE certificate ADD COLUMN source TEXT NOT NULL DEFAULT '';

-- The CA that a request which waits is for.
ALTER TABLE pending ADD COLUMN issuer TEXT NOT NULL DEFAULT '';
