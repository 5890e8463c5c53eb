"""Measures the engine, and says what a model directory holds and needs."""
