-- +goose Up
-- Runs that did nothing: the history holds fewer of them.
CREATE INDEX runs_idle ON runs (id) WHERE state = 'done' AND collected = 0 AND trashed = 0 AND unlinked = 0 AND purged = 0 AND failed = 0;
