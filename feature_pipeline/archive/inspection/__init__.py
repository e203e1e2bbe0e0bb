"""What is there and what is wrong with it: scans, reachability, the census, `verify`."""
