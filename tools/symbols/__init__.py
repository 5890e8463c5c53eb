"""Definitions in source files: languages, a child process that parses, the index, the tools `outline` and `find_symbol`."""
