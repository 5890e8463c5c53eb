"""`holdfast serve`: the model and its durable conversations over the OpenAI Responses API, on HTTP, SSE and WebSocket."""
