"""What carries the commands out, one module each. Their options are in `cli.options`."""
