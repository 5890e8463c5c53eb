"""What each language calls a definition, as tables over its tree-sitter grammar.

Owns the grammars, the tables and which file is in which language. Must not know how a tree is read (symbols), files on disk or caches.
"""

import re
from collections.abc import Mapping
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
from tree_sitter import Language


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
        "except_clause finally_clause with_statement for_statement while_statement match_statement case_clause assignment"
    ),
)
_JAVASCRIPT_KINDS = {
    "class_declaration": "class",
    "function_declaration": "def",
    "generator_function_declaration": "def",
    "method_definition": "def",
    "variable_declarator": "def",
    "assignment_expression": "def",
    "pair": "def",
}
_JAVASCRIPT_PASSAGES = _types(
    "program export_statement class_body lexical_declaration variable_declaration variable_declarator object if_statement else_clause "
    "try_statement catch_clause finally_clause statement_block expression_statement assignment_expression"
)
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
    "function_signature": "def",
}
_TYPESCRIPT_SCOPES = _types("class_declaration abstract_class_declaration internal_module module")
_TYPESCRIPT_PASSAGES = _JAVASCRIPT_PASSAGES | {"ambient_declaration"}
TYPESCRIPT = Grammar(
    Language(tree_sitter_typescript.language_typescript()), _TYPESCRIPT_KINDS, _TYPESCRIPT_SCOPES, _TYPESCRIPT_PASSAGES
)
TSX = Grammar(
    Language(tree_sitter_typescript.language_tsx()), _TYPESCRIPT_KINDS, _TYPESCRIPT_SCOPES, _TYPESCRIPT_PASSAGES
)
GO = Grammar(
    Language(tree_sitter_go.language()),
    {
        "function_declaration": "def",
        "method_declaration": "def",
        "type_spec": "type",
        "type_alias": "type",
        "const_spec": "const",
        "var_spec": "def",
    },
    passages=_types("source_file type_declaration const_declaration var_declaration var_spec_list"),
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
        "const_item": "const",
        "static_item": "const",
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
    "init_declarator": "const",
    "preproc_def": "const",
    "preproc_function_def": "macro",
}
_C_PASSAGES = _types(
    "translation_unit declaration declaration_list linkage_specification type_definition preproc_if preproc_ifdef preproc_else "
    "preproc_elif"
)
_C_TAGGED = _types("struct_specifier union_specifier enum_specifier")
C = Grammar(Language(tree_sitter_c.language()), _C_KINDS, passages=_C_PASSAGES, needs_body=_C_TAGGED)
CPP = Grammar(
    Language(tree_sitter_cpp.language()),
    _C_KINDS | {"class_specifier": "class", "alias_declaration": "type", "concept_definition": "concept"},
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
        "compact_constructor_declaration": "def",
        "variable_declarator": "const",
    },
    scopes=_types("class_declaration record_declaration interface_declaration enum_declaration"),
    passages=_types(
        "program class_body interface_body enum_body enum_body_declarations field_declaration constant_declaration"
    ),
)

GRAMMARS: Mapping[str, Grammar] = {
    **dict.fromkeys((".py", ".pyi"), PYTHON),
    **dict.fromkeys((".js", ".jsx", ".mjs", ".cjs"), JAVASCRIPT),
    **dict.fromkeys((".ts", ".mts", ".cts"), TYPESCRIPT),
    ".tsx": TSX,
    ".go": GO,
    ".rs": RUST,
    **dict.fromkeys((".c", ".h"), C),
    **dict.fromkeys((".cpp", ".hpp", ".cc", ".hh", ".cxx", ".hxx"), CPP),
    ".java": JAVA,
}
# Source in languages without a grammar here: to find nothing in them is no answer.
UNREAD_SUFFIXES = _types(
    ".rb .php .swift .kt .kts .scala .cs .fs .vb .lua .ex .exs .erl .hs .ml .mli .pl .pm .r .R .jl .dart .zig .nim .clj .cljs .groovy .sh "
    ".bash .ps1 .m .mm .vue .svelte .sql .f90 .pas .d .cr .elm .sol .proto .cu .cuh"
)
# What only C++ has, at the beginning of a line or with its `::`.
CPP_SIGN = re.compile(
    r"^[ \t]*(?:namespace\b[^;\n]*\{|template[ \t]*<|(?:class|struct)[ \t][^;()\n]*[{:]?[^;()\n]*:[ \t]*(?:public|private|protected)\b"
    r"|class[ \t]+\w+[^;()=\n]*$|class[ \t]+\w+[^;()=\n]*\{|using[ \t]+[\w:]+|(?:public|private|protected)[ \t]*:)|\bstd::",
    re.MULTILINE,
)


def grammar_of(path: str, text: str = "") -> Grammar | None:
    """The grammar for a path's suffix, or None. A `.h` is C++ when its text is."""
    suffix = PurePosixPath(path).suffix
    return CPP if suffix == ".h" and CPP_SIGN.search(text) else GRAMMARS.get(suffix)
