// Package check owns the reconciliation of storage and metadata, the engine of
// `fairway check`: it finds what events missed (invariants R7 and R8).
//
// A check goes through five phases, each resumable at a cursor:
//
//	storage   every object: is it named by an upload, a blob or a purge row?
//	          One that is not, and is older than the grace, is an orphan.
//	blobs     every blob row: is its object there, and of the right size?
//	          With Deep: do its bytes have its digest?
//	reviews   every link, blob and manifest: is the collector told of it if it
//	          should be?
//	manifests with Deep: does the content kept in the database have its digest?
//	database  foreign keys and the file's own structure.
//
// With Repair what the collector should know of is put up for review, and an
// orphan goes to the purge queue, in one statement that looks
// once more whether a row names it. A blob whose bytes are missing, cut or
// corrupt is marked lost: it answers 404, so that clients push it again, and
// the new bytes take the place of the old; a lost blob whose bytes are found
// whole is served again. Without Repair nothing is changed.
//
// A check runs while the server serves. It holds no lock and no transaction
// across storage I/O and keeps to a rate. Its state is in the database and is
// written together with each repair, so a check that a crash cut off goes on
// where it was, counting nothing twice.
//
// On any doubt it keeps: an object that cannot be read is failed, not lost; a
// check in the background leaves alone what is older than the database, since
// it may belong to another one.
package check
