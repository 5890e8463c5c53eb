"""holdfast: a coding agent and chat runtime whose sessions never start over, on its own DeepSeek-V4 engine.

The five packages lie beside this folder in a checkout; the links here give them their installed names, `holdfast.agent`
and so on. Owns no code.
"""
