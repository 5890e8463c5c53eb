"""Promises of the symbol tables: for each language, its definitions with kind, line and qualified name."""

import pytest

from tools.languages import GRAMMARS, grammar_of, symbols_of

PYTHON = """
X = 1
Y: int = 2
lower = 3
X += 1
if X:
    try:
        W = 1
    except ValueError:
        def f(): pass
@decorated
class A(B):
    Q = 1
    @property
    def p(self):
        def inner(): pass
    class C:
        async def d(self): pass
type P[T] = int
def broken(:
    pass
def after(): pass
"""
JAVASCRIPT = """
export class A {
  constructor() {}
  h = () => 2;
  y = 3;
  static async z() {}
}
const f = function () {}, g = async () => 1, n = 3;
function* gen() {}
export default function main() { function inner() {} }
"""
TYPESCRIPT = """
export abstract class A<T> {
  x = () => 1;
  abstract bar(): void;
}
interface I {}
type T = number;
export enum E { A }
namespace N { export function f() {} }
declare module M { class C {} }
"""
GO = """package m
type A struct {}
type (
    B interface{}
    C = int
    D int
)
func (a *A) F() {}
func (G[T]) H() {}
func K() {}
"""
RUST = """
impl<T> Foo<T> { pub fn a() {} }
impl Tr for &'static a::Bar { fn b() {} }
trait Tr { fn c(); }
mod m { pub struct S; }
enum E { A }
type U = u8;
macro_rules! mm { () => {} }
"""
C = """
typedef struct { int a; } Foo;
typedef struct Bar { int x; } Bar;
typedef struct S T;
static int *f(int a) { return 0; }
struct S { int a; };
enum E { A };
int prototype(void);
#ifdef X
struct S g(void) {}
#endif
typedef int (*callback)(int);
"""
CPP = """
namespace n {
class A : public B {
  int f() { return 1; }
  class C {};
};
template<class T> int A<T>::g() {}
A::~A() {}
enum class E { X };
using X = int;
int &h() {}
bool operator==(A a, A b) {}
}
extern "C" { int k() {} }
"""
JAVA = """
class A {
  enum E { X; void q() {} }
  record R(int a) {}
  interface I { void f(); }
  A() {}
  int g() { return 1; }
}
"""


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        (
            "a.py",
            PYTHON,
            "2 const X, 3 const Y, 8 const W, 10 def f, 12 class A, 15 def A.p, 17 class A.C, 18 def A.C.d, 19 type P, "
            "20 def broken, 22 def after",
        ),
        (
            "a.js",
            JAVASCRIPT,
            "2 class A, 3 def A.constructor, 4 def A.h, 6 def A.z, 8 def f, 8 def g, 9 def gen, 10 def main",
        ),
        ("a.tsx", "export const App = () => <div/>;", "1 def App"),
        (
            "a.ts",
            TYPESCRIPT,
            "2 class A, 3 def A.x, 4 def A.bar, 6 interface I, 7 type T, 8 enum E, 9 def N.f, 10 class M.C",
        ),
        ("a.go", GO, "2 struct A, 4 interface B, 5 type C, 6 type D, 8 def A.F, 9 def G.H, 10 def K"),
        (
            "a.rs",
            RUST,
            "2 def Foo.a, 3 def Bar.b, 4 trait Tr, 4 def Tr.c, 5 struct m.S, 6 enum E, 7 type U, 8 macro mm",
        ),
        (
            "a.h",
            C,
            "2 struct Foo, 3 struct Bar, 4 type T, 5 def f, 6 struct S, 7 enum E, 10 def g, 12 type callback",
        ),
        (
            "a.cc",
            CPP,
            "3 class n.A, 4 def n.A.f, 5 class n.A.C, 7 def n.A.g, 8 def n.A.~A, 9 enum n.E, 10 type n.X, 11 def n.h, "
            "12 def n.operator==, 14 def k",
        ),
        (
            "a.java",
            JAVA,
            "2 class A, 3 enum A.E, 3 def A.E.q, 4 record A.R, 5 interface A.I, 5 def A.I.f, 6 def A.A, 7 def A.g",
        ),
    ],
)
def test_symbols_of_each_language(path: str, text: str, expected: str) -> None:
    grammar = grammar_of(path)
    assert grammar is not None
    assert ", ".join(f"{s.line} {s.kind} {s.name}" for s in symbols_of(text, grammar)) == expected


def test_every_table_names_only_node_types_of_its_grammar() -> None:
    for suffix, grammar in GRAMMARS.items():
        for node_type in {*grammar.kinds, *grammar.scopes, *grammar.passages, *grammar.needs_body}:
            assert grammar.language.id_for_node_kind(node_type, True), f"{suffix}: {node_type}"


def test_deep_nesting_is_no_error() -> None:
    text = "".join("    " * min(i, 40) + f"class C{i}:\n" for i in range(41)) + "    " * 41 + "X = 1\n"
    assert len(symbols_of(text, GRAMMARS[".py"])) == 41
    assert symbols_of("namespace a {" * 5_000, GRAMMARS[".cpp"]) == ()


def test_unknown_suffixes_have_no_grammar() -> None:
    assert grammar_of("a.txt") is None and grammar_of("py") is None
