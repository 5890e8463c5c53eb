"""A session in a running server, used like one of this process: discovery, requests, events, approvals."""
