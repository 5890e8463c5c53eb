"""Other APIs, said in terms of responses: chat completions, text completions, Anthropic's messages."""
