-- +goose Up
CREATE TABLE pair (
    identity TEXT NOT NULL DEFAULT '',
    run      TEXT NOT NULL DEFAULT '',
    next     TEXT NOT NULL DEFAULT ''
);
INSERT INTO pair DEFAULT VALUES;
