"""The model of a turn: one request to it, stored state of its sequences, what leaves a full window."""
