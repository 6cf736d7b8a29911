-- +goose Up
-- The identity of this database and of the storage that belongs to it.
CREATE TABLE identity (
    id        TEXT NOT NULL,
    paired_at INTEGER
);
INSERT INTO identity (id) VALUES (lower(hex(randomblob(16))));
