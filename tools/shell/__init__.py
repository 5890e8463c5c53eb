"""Commands of the model: run to their end or as jobs, what they put out, and the directory they are in.

Everything runs in the sandbox. Must not know who allowed a command.
"""
