"""Conversations that the server keeps for its clients, and their routes."""
