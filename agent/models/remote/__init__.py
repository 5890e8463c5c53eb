"""Models behind HTTP: endpoints of the OpenAI kind, and servers that take token ids.

The session's token log stays the truth. An endpoint has a cache at most: what that holds is its own business, and it is
told what it says of it. Must not know sessions.
"""
