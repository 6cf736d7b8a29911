-- +goose Up
CREATE TABLE clock (seen INTEGER NOT NULL);
INSERT INTO clock (seen) VALUES (0);

CREATE TABLE blobs (
    digest     TEXT    NOT NULL PRIMARY KEY,
    size       INTEGER NOT NULL,
    state      TEXT    NOT NULL,
    was        TEXT    NOT NULL DEFAULT '',
    media_type TEXT    NOT NULL DEFAULT '',
    version    INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL,
    uses       INTEGER NOT NULL DEFAULT 0,
    fetch_ms   INTEGER NOT NULL DEFAULT 0,
    source     TEXT    NOT NULL DEFAULT '',
    chain_id   TEXT    NOT NULL DEFAULT '',
    deleted_at INTEGER NOT NULL DEFAULT 0,
    private    INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;

CREATE TABLE edges (
    parent     TEXT    NOT NULL,
    child      TEXT    NOT NULL,
    role       TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    media_type TEXT    NOT NULL,
    PRIMARY KEY (parent, child, role)
) WITHOUT ROWID;
CREATE INDEX edges_child ON edges (child, role, parent);

CREATE TABLE chains (
    chain_id TEXT NOT NULL,
    config   TEXT NOT NULL,
    PRIMARY KEY (chain_id, config)
) WITHOUT ROWID;
CREATE INDEX chains_config ON chains (config);

CREATE TABLE names (
    namespace  TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    tag        TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (namespace, repository, tag)
) WITHOUT ROWID;
CREATE INDEX names_digest ON names (digest);

CREATE TABLE pins (
    ref        TEXT    NOT NULL PRIMARY KEY,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE pin_roots (
    ref    TEXT NOT NULL REFERENCES pins (ref) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    PRIMARY KEY (ref, digest)
) WITHOUT ROWID;
CREATE INDEX pin_roots_digest ON pin_roots (digest);

CREATE TABLE grants (
    namespace  TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (digest, namespace, repository)
) WITHOUT ROWID;
