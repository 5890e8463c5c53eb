"""DeepSeek-V4 chat encoding: messages to tokens, and the model's output to text, reasoning and tool calls."""
