"""Options and help of the commands, one module for each section of the help.

They import nothing that only carrying a command out needs: `feature_pipeline.cli.commands` is
imported when a command is run, not for its `--help`.
"""
