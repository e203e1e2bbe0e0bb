"""Step 2: a hook's output becomes canonical bytes; S3 is the truth.

What belongs here: keys, bytes, documents and logs in the object store, and what may be believed
of them. Not here: how output is parsed (`hooks.output`), tables (`projections`), Dagster.

The path of an artifact: `format.encode` → `publish` (blobs, manifest, inbox entry) → `accept` (log
entry: the commit) → `read`. Below them are `format`, `store` and `logs`; `inspection` finds what is
wrong, `maintenance` changes what is stored, `query` reads without Dagster. Nothing stored is ever
overwritten, except that a blob whose bytes are not what its name says is replaced by the right
ones.
"""
