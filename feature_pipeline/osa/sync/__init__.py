"""Take the outputs of completed hook runs into the archive, and remember what was taken."""
