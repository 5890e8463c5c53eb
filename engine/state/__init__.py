"""State of sequences in memory: page pool, tails, content ids of pages, the pinned prefix."""
