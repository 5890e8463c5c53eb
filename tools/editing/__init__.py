"""The full form of the tools that read and change files: read, edit, write, move, delete."""
