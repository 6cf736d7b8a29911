-- +goose Up
CREATE TABLE nodes (
    name        TEXT    PRIMARY KEY,
    instance    TEXT    NOT NULL,
    superseded  TEXT    NOT NULL,
    seq         INTEGER NOT NULL,
    version     TEXT    NOT NULL,
    complete    INTEGER NOT NULL,
    runtimes    TEXT    NOT NULL,
    cache       TEXT    NOT NULL,
    runs        TEXT    NOT NULL,
    print       TEXT    NOT NULL,
    first_seen  INTEGER NOT NULL,
    seen_at     INTEGER NOT NULL,
    fresh_until INTEGER NOT NULL,
    kept_until  INTEGER NOT NULL
);
CREATE INDEX nodes_kept ON nodes (kept_until);

CREATE TABLE node_uses (
    holder     TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    containers INTEGER NOT NULL,
    since      INTEGER NOT NULL,
    PRIMARY KEY (holder, digest)
) WITHOUT ROWID;
