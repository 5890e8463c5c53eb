"""Who answers a turn: stored state of its sequences, and what leaves a full context window."""
