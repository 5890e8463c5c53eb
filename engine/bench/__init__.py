"""Measures the engine, and reports what a model directory holds and needs."""
