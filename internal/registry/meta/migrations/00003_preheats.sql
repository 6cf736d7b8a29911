-- +goose Up
ALTER TABLE nodes ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';

CREATE TABLE preheats (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    upstream      TEXT    NOT NULL,
    repository    TEXT    NOT NULL,
    tag           TEXT    NOT NULL,
    digest        TEXT    NOT NULL,
    all_platforms INTEGER NOT NULL,
    rule_id       INTEGER NOT NULL,
    actor         TEXT    NOT NULL,
    created_at    INTEGER NOT NULL
);
CREATE INDEX preheats_rule ON preheats (rule_id, repository, digest) WHERE rule_id <> 0;

CREATE TABLE preheat_nodes (
    preheat_id  INTEGER NOT NULL REFERENCES preheats (id) ON DELETE CASCADE,
    node        TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    done        INTEGER NOT NULL DEFAULT 0,
    total       INTEGER NOT NULL DEFAULT 0,
    error       TEXT    NOT NULL DEFAULT '',
    updated_at  INTEGER NOT NULL,
    started_at  INTEGER,
    finished_at INTEGER,
    PRIMARY KEY (preheat_id, node)
) WITHOUT ROWID;
CREATE INDEX preheat_nodes_open ON preheat_nodes (node, preheat_id) WHERE finished_at IS NULL;
CREATE INDEX preheat_nodes_heard ON preheat_nodes (node, updated_at);

CREATE TABLE preheat_rules (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    repository    TEXT    NOT NULL,
    tag           TEXT    NOT NULL,
    nodes         TEXT    NOT NULL,
    share         REAL    NOT NULL,
    all_platforms INTEGER NOT NULL,
    actor         TEXT    NOT NULL,
    created_at    INTEGER NOT NULL
);
