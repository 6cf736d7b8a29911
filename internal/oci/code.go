package oci

// Error codes of dist-spec v1.1 §Error Codes, and one of our own.
const (
	CodeBlobUnknown         = "BLOB_UNKNOWN"
	CodeBlobUploadInvalid   = "BLOB_UPLOAD_INVALID"
	CodeBlobUploadUnknown   = "BLOB_UPLOAD_UNKNOWN"
	CodeDigestInvalid       = "DIGEST_INVALID"
	CodeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	CodeManifestInvalid     = "MANIFEST_INVALID"
	CodeManifestUnknown     = "MANIFEST_UNKNOWN"
	CodeNameInvalid         = "NAME_INVALID"
	CodeNameUnknown         = "NAME_UNKNOWN"
	CodeSizeInvalid         = "SIZE_INVALID"
	CodeTagInvalid          = "TAG_INVALID" // Distribution's code, kept by clients; not in the v1.1 table
	// CodePaginationNumberInvalid is Distribution's, not in the v1.1 table.
	CodePaginationNumberInvalid = "PAGINATION_NUMBER_INVALID"
	CodeUnauthorized            = "UNAUTHORIZED"
	CodeDenied                  = "DENIED"
	CodeUnsupported             = "UNSUPPORTED"
	CodeTooManyRequests         = "TOOMANYREQUESTS"
	CodeStorageFull             = "STORAGE_FULL" // ours: the disk has no room for this upload
	CodeUnknown                 = "UNKNOWN"
)
