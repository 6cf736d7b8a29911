-- +goose Up
CREATE TABLE clock (seen INTEGER NOT NULL);
INSERT INTO clock (seen) VALUES (0);

CREATE TABLE repositories (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT    NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
);

CREATE TABLE blobs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    digest     TEXT    NOT NULL UNIQUE,
    size       INTEGER NOT NULL,
    key        TEXT    NOT NULL UNIQUE,
    version    INTEGER NOT NULL DEFAULT 1,
    touched_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    lost_at    INTEGER
);

CREATE TABLE links (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    repo_id    INTEGER NOT NULL REFERENCES repositories (id),
    blob_id    INTEGER NOT NULL REFERENCES blobs (id),
    hidden     INTEGER NOT NULL DEFAULT 0,
    version    INTEGER NOT NULL DEFAULT 1,
    touched_at INTEGER NOT NULL,
    UNIQUE (repo_id, blob_id)
);
CREATE INDEX links_blob ON links (blob_id);

CREATE TABLE manifests (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,
    repo_id       INTEGER NOT NULL REFERENCES repositories (id),
    digest        TEXT    NOT NULL,
    media_type    TEXT    NOT NULL,
    artifact_type TEXT    NOT NULL,
    subject       TEXT,
    size          INTEGER NOT NULL,
    version       INTEGER NOT NULL DEFAULT 1,
    pushed_at     INTEGER NOT NULL,
    touched_at    INTEGER NOT NULL,
    loose_at      INTEGER,
    orphaned_at   INTEGER,
    orphan_reason TEXT,
    trashed_at    INTEGER,
    annotations   TEXT,
    content       BLOB    NOT NULL,
    UNIQUE (repo_id, digest)
);
CREATE INDEX manifests_digest  ON manifests (digest);
CREATE INDEX manifests_subject ON manifests (repo_id, subject, digest) WHERE subject IS NOT NULL;
CREATE INDEX manifests_loose   ON manifests (loose_at, id) WHERE loose_at IS NOT NULL;

CREATE TABLE manifest_blobs (
    manifest_id INTEGER NOT NULL REFERENCES manifests (id) ON DELETE CASCADE,
    link_id     INTEGER NOT NULL REFERENCES links (id),
    living      INTEGER NOT NULL,
    PRIMARY KEY (manifest_id, link_id)
) WITHOUT ROWID;
CREATE INDEX manifest_blobs_link ON manifest_blobs (link_id, living);

CREATE TABLE manifest_children (
    manifest_id  INTEGER NOT NULL REFERENCES manifests (id) ON DELETE CASCADE,
    repo_id      INTEGER NOT NULL,
    child_digest TEXT    NOT NULL,
    PRIMARY KEY (manifest_id, child_digest)
) WITHOUT ROWID;
CREATE INDEX manifest_children_child ON manifest_children (repo_id, child_digest);

CREATE TABLE tags (
    repo_id     INTEGER NOT NULL REFERENCES repositories (id),
    name        TEXT    NOT NULL,
    manifest_id INTEGER NOT NULL REFERENCES manifests (id),
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (repo_id, name)
) WITHOUT ROWID;
CREATE INDEX tags_manifest ON tags (manifest_id);

CREATE TABLE trash (
    manifest_id INTEGER PRIMARY KEY REFERENCES manifests (id) ON DELETE CASCADE,
    trashed_at  INTEGER NOT NULL,
    tags        TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    cause       TEXT    NOT NULL,
    actor       TEXT    NOT NULL
);
CREATE INDEX trash_age ON trash (trashed_at, manifest_id);

CREATE TABLE uploads (
    id         TEXT    PRIMARY KEY,
    repo_id    INTEGER NOT NULL REFERENCES repositories (id),
    key        TEXT    NOT NULL UNIQUE,
    algorithm  TEXT    NOT NULL,
    size       INTEGER NOT NULL DEFAULT 0,
    hash_state BLOB,
    version    INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL,
    touched_at INTEGER NOT NULL
);
CREATE INDEX uploads_age  ON uploads (touched_at, id);
CREATE INDEX uploads_repo ON uploads (repo_id);

CREATE TABLE leases (
    holder     TEXT    PRIMARY KEY,
    expires_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
);
CREATE INDEX leases_end ON leases (expires_at);
CREATE TABLE lease_digests (
    holder     TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (holder, digest)
) WITHOUT ROWID;
CREATE INDEX lease_digests_digest ON lease_digests (digest, expires_at);
CREATE INDEX lease_digests_end ON lease_digests (expires_at);

CREATE TABLE reviews (
    kind     TEXT    NOT NULL,
    target   INTEGER NOT NULL,
    repo_id  INTEGER NOT NULL,
    event_at INTEGER NOT NULL,
    event    TEXT    NOT NULL,
    version  INTEGER NOT NULL DEFAULT 1,
    run_id   INTEGER,
    holder   TEXT,
    PRIMARY KEY (kind, target)
) WITHOUT ROWID;
CREATE INDEX reviews_due ON reviews (kind, event_at, target);
CREATE INDEX reviews_run ON reviews (run_id, kind, target) WHERE run_id IS NOT NULL;
CREATE INDEX reviews_holder ON reviews (holder) WHERE holder IS NOT NULL;

CREATE TABLE purges (
    key        TEXT    PRIMARY KEY,
    digest     TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    actor      TEXT    NOT NULL,
    run_id     INTEGER,
    queued_at  INTEGER NOT NULL,
    due_at     INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    last_error TEXT    NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX purges_due ON purges (due_at, key);
CREATE INDEX purges_digest ON purges (digest);

CREATE TABLE runs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    trigger     TEXT    NOT NULL,
    state       TEXT    NOT NULL,
    actor       TEXT    NOT NULL,
    policy      TEXT    NOT NULL,
    total       INTEGER NOT NULL DEFAULT 0,
    examined    INTEGER NOT NULL DEFAULT 0,
    collected   INTEGER NOT NULL DEFAULT 0,
    trashed     INTEGER NOT NULL DEFAULT 0,
    unlinked    INTEGER NOT NULL DEFAULT 0,
    freed_bytes INTEGER NOT NULL DEFAULT 0,
    purged      INTEGER NOT NULL DEFAULT 0,
    failed      INTEGER NOT NULL DEFAULT 0,
    error       TEXT    NOT NULL DEFAULT '',
    started_at  INTEGER NOT NULL,
    finished_at INTEGER
);
CREATE INDEX runs_state ON runs (state) WHERE state = 'running';

CREATE TABLE run_kept (
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    reason TEXT    NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (run_id, reason)
) WITHOUT ROWID;

CREATE TABLE deletions (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL,
    kind   TEXT    NOT NULL,
    act    TEXT    NOT NULL,
    repo   TEXT    NOT NULL,
    digest TEXT    NOT NULL,
    bytes  INTEGER NOT NULL,
    reason TEXT    NOT NULL,
    actor  TEXT    NOT NULL,
    run_id INTEGER
);
CREATE INDEX deletions_digest ON deletions (digest);
CREATE INDEX deletions_run ON deletions (run_id) WHERE run_id IS NOT NULL;

CREATE TABLE run_events (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    at     INTEGER NOT NULL,
    level  TEXT    NOT NULL,
    text   TEXT    NOT NULL
);
CREATE INDEX run_events_run ON run_events (run_id);

CREATE TABLE schedules (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    cron       TEXT    NOT NULL,
    policy     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    last_run   INTEGER
);

CREATE TABLE checks (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    state       TEXT    NOT NULL,
    options     TEXT    NOT NULL,
    phase       TEXT    NOT NULL,
    cursor      TEXT    NOT NULL,
    report      TEXT    NOT NULL,
    started_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    finished_at INTEGER
);
