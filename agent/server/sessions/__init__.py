"""The agent's sessions over HTTP: routes, the sessions that are open, and which are a user's."""
