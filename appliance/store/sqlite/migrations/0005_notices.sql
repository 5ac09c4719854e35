-- Certificates of which a validator has to hear before they are delivered. A row goes
-- when it has.
CREATE TABLE notice (
	serial    TEXT    NOT NULL PRIMARY KEY,
	validator TEXT    NOT NULL,
	since     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
