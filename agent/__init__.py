"""The agent: sessions, turns, front ends. The command line, the terminal and the server are here; the engine is not."""

VERSION = "0.1.0"
