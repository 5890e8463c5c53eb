"""Other APIs, translated to responses: chat completions, text completions, Anthropic's messages."""
