"""The object store: what any store must do, S3, and a store in memory."""
