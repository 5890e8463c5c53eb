"""The Responses API and chat completions: requests, conversations, generation, the response and its events."""
