"""The sandbox of every process that the agent starts.

Owns what such a process may reach, what it may use, and that nothing of it stays behind.
Must not know which tool starts it.
"""
