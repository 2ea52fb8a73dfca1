"""The command line: one file a command group; `cli.py` puts them together and turns errors into exit codes.

Words, tables and progress for people live here and nowhere below; what a command does is a function of a stage.
"""
