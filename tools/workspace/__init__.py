"""The directory that tools work in: which files they may touch, how each is opened and written, what was shown."""
