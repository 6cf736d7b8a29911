// Package upload owns upload sessions: how a blob's bytes come in, in one
// piece or in chunks, over one server's life or several.
//
// Bytes are hashed while they are written, made durable, and only then does a
// row say so (R7). The row keeps the state of the hash, so a resumed upload
// reads nothing again. A blob appears in the transaction that ends its
// session, and only if the bytes have the digest that the client named.
//
// One request at a time works on a session. It refuses a chunk that does not
// begin where the session ends, a body that is longer or shorter than
// announced, and a digest that does not match.
package upload
