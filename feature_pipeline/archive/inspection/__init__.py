"""Inspection of the archive: scans, reachability, the census, `verify`."""
