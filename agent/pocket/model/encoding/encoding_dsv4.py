"""The protocol texts pocket was trained with; read as literals, never executed."""

TOOLS_TEMPLATE = "Tools: read, outline, find_symbol, search, edit."
