"""Symbols of one source text: its definitions, read off the tree that tree-sitter makes of it.

Owns how a tree is read. Must not know files on disk, caches or output formats. Definitions only: prototypes and declarations
without a body are left out, unless they are all there is (`declare function`), and nothing inside a function is looked at.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node, Parser

from holdfast.tools.symbols.languages import Grammar

CONSTANT_NAME = re.compile(r"_*[A-Z][A-Z0-9_]*")
FUNCTION_VALUES = frozenset(
    {"arrow_function", "function_expression", "generator_function", "func_literal", "lambda_expression"}
)
MAX_SCOPES = 100  # of nesting: each name is written out with all that it is nested in


@dataclass(frozen=True)
class Symbol:
    """A definition: `line` counts from 1, `name` is qualified by its enclosing types with dots."""

    line: int
    kind: str
    name: str


def symbols_of(text: str, grammar: Grammar) -> tuple[Symbol, ...]:
    """Definitions in `text`, in file order. Text with syntax errors gives what can still be recognised."""
    root = Parser(grammar.language).parse(text.encode()).root_node
    found: list[Symbol] = []
    # An own stack: nesting depth is the file's choice, not ours.
    waiting: list[tuple[Node, tuple[str, ...]]] = [(root, ())]
    while waiting:
        node, scope = waiting.pop()
        kind = _kind(node, grammar, scope)
        is_scope = node.type in grammar.scopes
        names = _names(node) if kind or is_scope else []
        for name in names if kind else []:
            found.append(Symbol(node.start_point.row + 1, kind, ".".join((*scope, name))))
        if is_scope and len(scope) < MAX_SCOPES:
            waiting += [(child, (*scope, *names)) for child in _bodies(node)]
        elif node.type in grammar.passages or node.type == "ERROR":
            inner = _object_scope(node, scope)
            waiting += [(child, inner) for child in reversed(node.named_children)]
    return tuple(found)


def _bodies(node: Node) -> Iterator[Node]:
    body = node.child_by_field_name("body")
    if body is not None:
        yield from reversed(body.named_children)


def _object_scope(node: Node, scope: tuple[str, ...]) -> tuple[str, ...]:
    """What the functions of a JavaScript object are called by: the variable that holds it, unless that is the module."""
    field = {"variable_declarator": "value", "assignment_expression": "right"}.get(node.type)
    value = node.child_by_field_name(field) if field else None
    if value is None or value.type != "object" or len(scope) >= MAX_SCOPES:
        return scope
    return (*scope, *_names(node))


def _kind(node: Node, grammar: Grammar, scope: tuple[str, ...]) -> str:
    """Kind of symbol that `node` defines, "" for none; here are the cases that a node type alone does not decide."""
    kind = grammar.kinds.get(node.type, "")
    if not kind or (node.type in grammar.needs_body and node.child_by_field_name("body") is None):
        return ""
    decide = DECIDED_BY_MORE.get(node.type)
    return decide(node, kind, scope) if decide else kind


def _variable_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    """A variable of JavaScript or a field of Java."""
    parent = node.parent
    if parent is not None and parent.type in ("field_declaration", "constant_declaration"):
        words = set(_text(parent.named_children[0]).split()) if parent.named_children else set()
        return kind if parent.type == "constant_declaration" or {"static", "final"} <= words else ""
    value = node.child_by_field_name("value")
    if value is not None and _is_function(value):
        return "def"
    if value is not None and value.type == "class":
        return "class"
    name = node.child_by_field_name("name")
    if parent is None or parent.type != "lexical_declaration" or not _text(parent).startswith("const"):
        return ""
    around = parent.parent.type if parent.parent is not None else ""
    is_public = around in ("export_statement", "ambient_declaration") or bool(CONSTANT_NAME.fullmatch(_text(name)))
    return "const" if is_public and name is not None and name.type == "identifier" else ""


def _is_function(value: Node) -> bool:
    """Whether a JavaScript value is a function, also one that is wrapped on the way: `memo(() => ...)`, not `list.map(() => ...)`."""
    if value.type in FUNCTION_VALUES:
        return True
    called, arguments = value.child_by_field_name("function"), value.child_by_field_name("arguments")
    if value.type != "call_expression" or called is None or arguments is None:
        return False
    is_wrapper = called.type in ("identifier", "call_expression") or _text(called)[:1].isupper()
    return is_wrapper and any(argument.type in FUNCTION_VALUES for argument in arguments.named_children)


def _value_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    value = node.child_by_field_name("value")
    return kind if value is not None and value.type in FUNCTION_VALUES else ""


def _member_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    """`module.exports.f = () => ...`, `A.prototype.f = function ...`."""
    left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
    is_function = left is not None and left.type == "member_expression" and right is not None and _is_function(right)
    return kind if is_function else ""


def _signature_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    """A TypeScript signature counts unless the next thing is of the same name: then it is an overload of that."""
    statement = node.parent if node.parent is not None and node.parent.type == "export_statement" else node
    after = statement.next_named_sibling
    if after is not None and after.type == "export_statement":
        after = after.child_by_field_name("declaration")
    return "" if after is not None and _names(after) == _names(node) else kind


def _assignment_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    is_constant = not scope and all(CONSTANT_NAME.fullmatch(name) for name in _names(node))
    return kind if is_constant else ""


def _go_variable_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    values = node.child_by_field_name("value")
    is_function = values is not None and [child.type for child in values.named_children] == ["func_literal"]
    return kind if is_function else ""


def _go_type_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    return _kind_word(node.child_by_field_name("type"), ("struct", "interface")) or kind


def _typedef_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    """C: `typedef struct {...} T` is struct T. In `typedef struct S {...} T` the struct speaks for S, so only another name is news."""
    target = node.child_by_field_name("type")
    if target is None or target.child_by_field_name("body") is None:
        return kind
    if target.child_by_field_name("name") is None:
        return _kind_word(target, ("struct", "union", "enum")) or kind
    return "" if _names(target) == _names(node) else kind


def _c_variable_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    if _value_kind(node, kind, scope):
        return "def"
    words = {_text(child) for child in node.parent.named_children} if node.parent is not None else set()
    return kind if words & {"const", "constexpr"} else ""


def _c_function_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    """A function has parameters; `class EXPORT A {...}` has none, though it reads like one to whom the macro is unknown."""
    target = node.child_by_field_name("type")
    declarator = node.child_by_field_name("declarator")
    if declarator is not None and declarator.type == "identifier":
        return _kind_word(target, ("class", "struct", "union", "enum"))
    return kind


def _macro_kind(node: Node, kind: str, scope: tuple[str, ...]) -> str:
    """A name that is defined as nothing is a guard, not a constant."""
    return kind if node.child_by_field_name("value") is not None else ""


DECIDED_BY_MORE = {
    "variable_declarator": _variable_kind,
    "field_definition": _value_kind,
    "public_field_definition": _value_kind,
    "pair": _value_kind,
    "assignment_expression": _member_kind,
    "function_signature": _signature_kind,
    "assignment": _assignment_kind,
    "var_spec": _go_variable_kind,
    "type_spec": _go_type_kind,
    "type_definition": _typedef_kind,
    "init_declarator": _c_variable_kind,
    "function_definition": _c_function_kind,
    "preproc_def": _macro_kind,
}


def _kind_word(node: Node | None, words: tuple[str, ...]) -> str:
    """`struct` for a node type such as struct_type or struct_specifier."""
    word = node.type.split("_")[0] if node is not None else ""
    return word if word in words else ""


def _names(node: Node) -> list[str]:
    """Names that `node` gives or, for what has only a type (`impl`), the type's; none when it has none."""
    if node.type == "assignment":
        left = node.child_by_field_name("left")
        targets = left.named_children if left is not None and left.type in ("pattern_list", "tuple_pattern") else [left]
        return [_text(target) for target in targets]
    if node.type == "const_spec":
        return [_text(name) for name in node.children_by_field_name("name") if name.is_named]
    name = _name(node)
    return [name] if name else []


def _name(node: Node) -> str:
    if node.type == "impl_item":
        return _type_name(node.child_by_field_name("type"))
    if node.type == "type_alias_statement":
        return _type_name(node.child_by_field_name("left"))
    if node.type == "assignment_expression":
        return re.sub(r"^(module\.)?exports\.?|\bprototype\.", "", _plain_name(_text(node.child_by_field_name("left"))))
    if node.type == "pair":
        return _plain_name(_text(node.child_by_field_name("key")))
    name = _plain_name(_text(_name_node(node)))
    receiver = node.child_by_field_name("receiver")
    return f"{_type_name(receiver)}.{name}" if receiver is not None else name


def _name_node(node: Node) -> Node | None:
    """The name field, or (C, C++) what is left when pointers, references and parameters are taken off the declarator."""
    name = node.child_by_field_name("name") or node.child_by_field_name("property")
    declarator = node.child_by_field_name("declarator")
    while name is None and declarator is not None and declarator.type != "operator_cast":
        inner = declarator.child_by_field_name("declarator")
        if inner is None and declarator.type in ("reference_declarator", "parenthesized_declarator"):
            inner = declarator.named_children[-1] if declarator.named_children else None
        if inner is None:
            return declarator
        declarator = inner
    return name or declarator


def _text(node: Node | None) -> str:
    return node.text.decode(errors="replace") if node is not None and node.text is not None else ""


def _plain_name(text: str) -> str:
    """`A<T>::g` -> `A.g`; quotes of a string-named member or module are dropped."""
    scopes, operator, symbol = text.partition("operator")
    if re.match(r"\s+\w", symbol):  # a conversion: `operator int() const`
        symbol = " " + " ".join(symbol.partition("(")[0].split())
        return re.sub(r"\s+", "", _without(scopes, "<", ">").replace("::", ".")) + operator + symbol
    kept = (
        _without(scopes, "<", ">")
        + operator
        + (symbol if operator and not symbol[:1].isalnum() else _without(symbol, "<", ">"))
    )
    return re.sub(r"\s+", "", kept.replace("::", ".")).strip("\"'")


def _type_name(node: Node | None) -> str:
    """Last word of a type without its parameters: `&'a m::Foo<T>` -> `Foo`, `(a *A[T])` -> `A`."""
    words = re.findall(r"\w+", _without(_without(_text(node), "<", ">"), "[", "]"))
    return words[-1] if words else ""


def _without(text: str, opening: str, closing: str) -> str:
    """`text` without what stands in brackets. The `>` of an arrow is none."""
    kept, depth = [], 0
    for before, char in zip(" " + text, text, strict=False):
        if char == opening:
            depth += 1
        elif char == closing and depth and before not in "-=":
            depth -= 1
        elif not depth:
            kept.append(char)
    return "".join(kept)
