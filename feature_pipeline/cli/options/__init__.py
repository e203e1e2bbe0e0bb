"""Options and help of the commands, one module for each section of the help.

They import nothing that only the execution of a command needs: `feature_pipeline.cli.commands` is
imported when a command is run, not for its `--help`.
"""
