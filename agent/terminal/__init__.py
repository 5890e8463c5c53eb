"""A person at a terminal: the chat, what events look like, how a call is asked about, text made safe to print."""
