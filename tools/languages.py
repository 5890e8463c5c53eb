"""Symbols of one source text: what each language calls a definition, as tables over its tree-sitter grammar.

Owns the grammars and the tables. Must not know files on disk, caches or output formats. Definitions only: prototypes and
declarations without a body are left out, and nothing inside a function is looked at.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import tree_sitter_c
import tree_sitter_cpp
import tree_sitter_go
import tree_sitter_java
import tree_sitter_javascript
import tree_sitter_python
import tree_sitter_rust
import tree_sitter_typescript
from tree_sitter import Language, Node, Parser

CONSTANT_NAME = re.compile(r"_*[A-Z][A-Z0-9_]*")
FUNCTION_VALUES = frozenset({"arrow_function", "function_expression", "generator_function"})


@dataclass(frozen=True)
class Symbol:
    """A definition: `line` counts from 1, `name` is qualified by its enclosing types with dots."""

    line: int
    kind: str
    name: str


@dataclass(frozen=True)
class Grammar:
    """How to read one language. Node types not named here are not entered."""

    language: Language
    kinds: Mapping[str, str]  # node type -> kind of symbol
    scopes: frozenset[str] = frozenset()  # node types whose name qualifies what is inside
    passages: frozenset[str] = frozenset()  # node types entered without a trace
    needs_body: frozenset[str] = field(default_factory=frozenset)  # a definition only when it has a body


def _types(names: str) -> frozenset[str]:
    return frozenset(names.split())


PYTHON = Grammar(
    Language(tree_sitter_python.language()),
    {"class_definition": "class", "function_definition": "def", "assignment": "const", "type_alias_statement": "type"},
    scopes=_types("class_definition"),
    passages=_types(
        "module block decorated_definition expression_statement if_statement elif_clause else_clause try_statement "
        "except_clause finally_clause with_statement"
    ),
)
_JAVASCRIPT_KINDS = {
    "class_declaration": "class",
    "function_declaration": "def",
    "generator_function_declaration": "def",
    "method_definition": "def",
    "variable_declarator": "def",
}
_JAVASCRIPT_PASSAGES = _types("program export_statement class_body lexical_declaration variable_declaration")
JAVASCRIPT = Grammar(
    Language(tree_sitter_javascript.language()),
    _JAVASCRIPT_KINDS | {"field_definition": "def"},
    scopes=_types("class_declaration"),
    passages=_JAVASCRIPT_PASSAGES,
)
_TYPESCRIPT_KINDS = _JAVASCRIPT_KINDS | {
    "abstract_class_declaration": "class",
    "interface_declaration": "interface",
    "type_alias_declaration": "type",
    "enum_declaration": "enum",
    "public_field_definition": "def",
    "abstract_method_signature": "def",
}
_TYPESCRIPT_SCOPES = _types("class_declaration abstract_class_declaration internal_module module")
_TYPESCRIPT_PASSAGES = _JAVASCRIPT_PASSAGES | _types("statement_block expression_statement ambient_declaration")
TYPESCRIPT = Grammar(
    Language(tree_sitter_typescript.language_typescript()), _TYPESCRIPT_KINDS, _TYPESCRIPT_SCOPES, _TYPESCRIPT_PASSAGES
)
TSX = Grammar(
    Language(tree_sitter_typescript.language_tsx()), _TYPESCRIPT_KINDS, _TYPESCRIPT_SCOPES, _TYPESCRIPT_PASSAGES
)
GO = Grammar(
    Language(tree_sitter_go.language()),
    {"function_declaration": "def", "method_declaration": "def", "type_spec": "type", "type_alias": "type"},
    passages=_types("source_file type_declaration"),
)
RUST = Grammar(
    Language(tree_sitter_rust.language()),
    {
        "struct_item": "struct",
        "enum_item": "enum",
        "union_item": "union",
        "trait_item": "trait",
        "type_item": "type",
        "function_item": "def",
        "function_signature_item": "def",
        "macro_definition": "macro",
    },
    scopes=_types("trait_item impl_item mod_item"),
    passages=_types("source_file declaration_list"),
)
_C_KINDS = {
    "function_definition": "def",
    "struct_specifier": "struct",
    "union_specifier": "union",
    "enum_specifier": "enum",
    "type_definition": "type",
}
_C_PASSAGES = _types(
    "translation_unit declaration declaration_list linkage_specification type_definition preproc_if preproc_ifdef preproc_else "
    "preproc_elif"
)
_C_TAGGED = _types("struct_specifier union_specifier enum_specifier")
C = Grammar(Language(tree_sitter_c.language()), _C_KINDS, passages=_C_PASSAGES, needs_body=_C_TAGGED)
CPP = Grammar(
    Language(tree_sitter_cpp.language()),
    _C_KINDS | {"class_specifier": "class", "alias_declaration": "type"},
    scopes=_types("namespace_definition class_specifier struct_specifier union_specifier"),
    passages=_C_PASSAGES | _types("field_declaration_list field_declaration template_declaration"),
    needs_body=_C_TAGGED | {"class_specifier"},
)
JAVA = Grammar(
    Language(tree_sitter_java.language()),
    {
        "class_declaration": "class",
        "record_declaration": "record",
        "interface_declaration": "interface",
        "annotation_type_declaration": "interface",
        "enum_declaration": "enum",
        "method_declaration": "def",
        "constructor_declaration": "def",
    },
    scopes=_types("class_declaration record_declaration interface_declaration enum_declaration"),
    passages=_types("program class_body interface_body enum_body enum_body_declarations"),
)

GRAMMARS: Mapping[str, Grammar] = {
    ".py": PYTHON,
    ".js": JAVASCRIPT,
    ".jsx": JAVASCRIPT,
    ".mjs": JAVASCRIPT,
    ".ts": TYPESCRIPT,
    ".tsx": TSX,
    ".go": GO,
    ".rs": RUST,
    ".c": C,
    ".h": C,
    ".cpp": CPP,
    ".hpp": CPP,
    ".cc": CPP,
    ".java": JAVA,
}


def grammar_of(path: str) -> Grammar | None:
    """The grammar for a path's suffix, or None."""
    return GRAMMARS.get(PurePosixPath(path).suffix)


def symbols_of(text: str, grammar: Grammar) -> tuple[Symbol, ...]:
    """Definitions in `text`, in file order. Text with syntax errors gives what can still be recognised."""
    root = Parser(grammar.language).parse(text.encode()).root_node
    found: list[Symbol] = []
    # An own stack: nesting depth is the file's choice, not ours.
    waiting: list[tuple[Node, tuple[str, ...]]] = [(root, ())]
    while waiting:
        node, scope = waiting.pop()
        kind = _kind(node, grammar, scope)
        name = _name(node) if kind or node.type in grammar.scopes else ""
        qualified = (*scope, name) if name else scope
        if kind and name:
            found.append(Symbol(node.start_point.row + 1, kind, ".".join(qualified)))
        if node.type in grammar.scopes:
            waiting += [(child, qualified) for child in _bodies(node)]
        elif node.type in grammar.passages:
            waiting += [(child, scope) for child in reversed(node.named_children)]
    return tuple(found)


def _bodies(node: Node) -> Iterator[Node]:
    body = node.child_by_field_name("body")
    if body is not None:
        yield from reversed(body.named_children)


def _kind(node: Node, grammar: Grammar, scope: tuple[str, ...]) -> str:
    """Kind of symbol that `node` defines, "" for none; here are the cases that a node type alone does not decide."""
    kind = grammar.kinds.get(node.type, "")
    if node.type in grammar.needs_body and node.child_by_field_name("body") is None:
        return ""
    if node.type in ("variable_declarator", "field_definition", "public_field_definition"):
        value = node.child_by_field_name("value")
        return kind if value is not None and value.type in FUNCTION_VALUES else ""
    if kind == "const":
        left = node.child_by_field_name("left")
        is_constant = left is not None and left.type == "identifier" and CONSTANT_NAME.fullmatch(_text(left))
        return kind if is_constant and not scope else ""
    if node.type == "type_spec":
        return _kind_word(node.child_by_field_name("type"), ("struct", "interface")) or kind
    if node.type == "type_definition":
        return _typedef_kind(node)
    return kind


def _typedef_kind(node: Node) -> str:
    """C: `typedef struct {...} T` is struct T. In `typedef struct S {...} T` the struct speaks for S, so only another name is news."""
    target = node.child_by_field_name("type")
    if target is None or target.child_by_field_name("body") is None:
        return "type"
    if target.child_by_field_name("name") is None:
        return _kind_word(target, ("struct", "union", "enum")) or "type"
    return "" if _name(target) == _name(node) else "type"


def _kind_word(node: Node | None, words: tuple[str, ...]) -> str:
    """`struct` for a node type such as struct_type or struct_specifier."""
    word = node.type.split("_")[0] if node is not None else ""
    return word if word in words else ""


def _name(node: Node) -> str:
    """Name that `node` gives or, for what has only a type (`impl`), the type's; "" when it has none."""
    if node.type == "impl_item":
        return _type_name(node.child_by_field_name("type"))
    if node.type == "assignment":
        return _text(node.child_by_field_name("left"))
    if node.type == "type_alias_statement":
        return _type_name(node.child_by_field_name("left"))
    name = _plain_name(_text(_name_node(node)))
    receiver = node.child_by_field_name("receiver")
    return f"{_type_name(receiver)}.{name}" if receiver is not None else name


def _name_node(node: Node) -> Node | None:
    """The name field, or (C, C++) what is left when pointers, references and parameters are taken off the declarator."""
    name = node.child_by_field_name("name") or node.child_by_field_name("property")
    declarator = node.child_by_field_name("declarator")
    while name is None and declarator is not None:
        inner = declarator.child_by_field_name("declarator")
        if inner is None and declarator.type in ("reference_declarator", "parenthesized_declarator"):
            inner = declarator.named_children[-1] if declarator.named_children else None
        if inner is None:
            return declarator
        declarator = inner
    return name


def _text(node: Node | None) -> str:
    return node.text.decode(errors="replace") if node is not None and node.text is not None else ""


def _plain_name(text: str) -> str:
    """`A<T>::g` -> `A.g`; quotes of a string-named member or module are dropped."""
    while text != (text := re.sub(r"<[^<>]*>", "", text)):
        pass
    return re.sub(r"\s+", "", text.replace("::", ".")).strip("\"'")


def _type_name(node: Node | None) -> str:
    """Last word of a type without its parameters: `&'a m::Foo<T>` -> `Foo`, `(a *A[T])` -> `A`."""
    text = _text(node)
    while text != (text := re.sub(r"<[^<>]*>|\[[^\[\]]*\]", "", text)):
        pass
    words = re.findall(r"\w+", text)
    return words[-1] if words else ""
