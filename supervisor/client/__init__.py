"""Asks a running supervisor, or prepares and starts one. The command line, the drill and the report use it."""
