"""One durable conversation: its turns, which calls of the model run, and sessions seen from outside."""
