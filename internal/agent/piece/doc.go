// Package piece owns the node's cache on disk: blobs of any kind in pieces of
// 256 KiB, the readers and writers of each, its quota, and the only way to
// remove one.
//
//	DIR/blobs/sha256/ab/<hex>         the bytes, sparse while some are missing
//	DIR/blobs/sha256/ab/<hex>.pieces  which pieces are here, and their crc32c
//
// A row in package index comes before the bytes and goes before them, so that
// whatever a crash leaves is either a row without files, which the next Open
// drops, or files without a row, which it removes. Only where a full disk lets no
// row go do the bytes go first; and only where the index is rebuilt do files
// without a row get one. A record in the .pieces file
// is written after the piece; a record whose piece is not what it says (after a
// power failure, a bad disk, somebody's editor) is a piece that is not here.
//
// What holds:
//   - N2: a blob that somebody has a handle on is neither claimed nor removed.
//   - N4: whoever opens a claimed blob wins it back; the removal then fails.
//   - N6: what does not fit is refused at admission, which asks the judge whether
//     room for the whole could be made; nothing is removed but by the judge.
//   - N12: room is made for bytes that have arrived, piece by piece. A size is a
//     claim: it writes, counts and evicts nothing.
//   - N7: the last piece of what is read of a blob, all of it or a part, is handed
//     out only when the whole matched its digest, so nothing that was not verified
//     is ever read to its end; and no piece is handed out that does not match its
//     checksum.
//
// It refuses: a removal without a claim that still stands, a claim on what is
// open, pinned or changed since it was judged, and a piece of the wrong size.
//
// Lock order: Store.mu before entry.mu. Neither is held across disk or database.
package piece
