"""What carries the commands out, in a folder for each section of the help."""
