"""Step 2: store a hook's output as canonical bytes. S3 is the source of truth.

What belongs here: keys, bytes, documents and logs in the object store, and the rules for trusting
them. Not here: parsing of output (`hooks.output`), tables (`projections`), Dagster.

The path of an artifact is `format.encode` → `publish` (blobs, manifest, inbox entry) → `accept`
(log entry: the commit) → `read`. Below these are `format`, `store` and `logs`. `inspection` finds
problems, `maintenance` changes stored objects, and `query` reads without Dagster. No object is ever
overwritten, except that a blob whose bytes do not match its name is replaced by the right ones.
"""
