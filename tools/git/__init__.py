"""git on the workspace's repository: read, and commit named files. Nothing that the repository brings along is run."""
