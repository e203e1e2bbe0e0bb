"""What stored bytes are: keys, documents, manifests, encodings. Imports no store."""
