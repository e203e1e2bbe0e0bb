"""Implementations of `BlobStore`: memory for tests, S3 for everything else."""
