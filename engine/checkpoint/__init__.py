"""A checkpoint in the official format: config.json, the tensors there must be, their files; also written."""
