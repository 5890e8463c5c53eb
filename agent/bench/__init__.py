"""Measures sessions: save, resume, fork, rewind, roll."""
