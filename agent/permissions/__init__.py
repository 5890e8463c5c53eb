"""What may run without a question: the modes, rules that a person wrote or remembered, and the file that keeps them.

Owns what a rule matches, command lines included. Must not know how a person is asked (terminal, server).
"""
