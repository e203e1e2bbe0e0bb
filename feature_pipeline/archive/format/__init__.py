"""Formats of stored bytes: keys, documents, manifests, encodings. Imports no store."""
