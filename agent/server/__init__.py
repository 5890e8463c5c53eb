"""`holdfast serve`: the model and its durable conversations over HTTP, SSE and WebSocket, as the Responses API."""
