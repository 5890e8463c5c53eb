"""Promises of the symbol tables: for each language, its definitions with kind, line and qualified name."""

import pytest

from holdfast.tools.symbols.definitions import symbols_of
from holdfast.tools.symbols.languages import GRAMMARS, UNREAD_SUFFIXES, grammar_of

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
A_B, c_d = 1, 2
C_D, E_F = 1, 2
G = H = 5
for i in x:
    def in_for(): pass
match x:
    case 1:
        def in_match(): pass
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
const MAX = 1, other = 2;
export const routes = [];
export const Memo = React.memo(function Inner() { return null; });
const doubled = list.map((x) => 2 * x);
module.exports.foo = () => {};
exports.bar = function () {};
module.exports = { legacy: function () {}, legacy2() {}, n: 1 };
A.prototype.method = function () {};
const obj = { method() {}, arrow: () => {} };
if (cond) { function inIf() {} }
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
export const Comp = React.forwardRef<HTMLDivElement, P>((p, r) => null);
const useStore = create<State>()((set) => ({}));
export const CONFIG = { port: 1, start() {} };
function over(a: string): void;
function over(a: any) {}
declare function ambient(): void;
declare const amb: number;
declare module "foo" { export function bar(): void; }
class Broken {
  one() { return f(1; }
  two(a: string { return 2; }
  three() {}
}
function after() {}
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
const Max = 1
const (
    X = iota; Y
)
var handler = func() {}
var other = 1
"""
RUST = """
impl<T> Foo<T> { pub fn a() {} }
impl Tr for &'static a::Bar { fn b() {} }
trait Tr { fn c(); }
mod m { pub struct S; }
enum E { A }
type U = u8;
macro_rules! mm { () => {} }
pub const MAX: u32 = 1;
static GLOBAL: &str = "x";
impl<T: Tr> Tr for Box<dyn Fn(T) -> T> { const K: i32 = 1; fn d() {} }
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
#define GUARD_H
#define MAX 3
#define FN(x) x
static const char *const names[] = {"a"};
int variable = 1;
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
constexpr int K = 5;
auto lam = [](int x) { return x; };
template <class T> concept Cc = true;
class EXPORT_API Exported { void em() {} };
struct S { operator int() const { return 1; } S* operator->() { return this; } };
bool operator<(S a, S b) { return true; }
"""
CPP_HEADERS = (
    "class A { public: void m() {} };",
    "namespace n { struct A { void m() {} }; }",
    "template <typename T> struct A { T v; };",
    "class A\n{\n};",
    "struct A : public B {};",
    "std::string f();",
)
JAVA = """
class A {
  enum E { X; void q() {} }
  record R(int a) {}
  interface I { void f(); }
  A() {}
  int g() { return 1; }
  static final int MAX = 1, MIN = 0;
  final int field = 2;
  record S(int a) { S {} }
  interface J { int K = 2; }
}
"""


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        (
            "a.py",
            PYTHON,
            "2 const X, 3 const Y, 8 const W, 10 def f, 12 class A, 15 def A.p, 17 class A.C, 18 def A.C.d, 19 type P, "
            "21 const C_D, 21 const E_F, 22 const G, 22 const H, 24 def in_for, 27 def in_match, 28 def broken, 30 def after",
        ),
        (
            "a.js",
            JAVASCRIPT,
            "2 class A, 3 def A.constructor, 4 def A.h, 6 def A.z, 8 def f, 8 def g, 9 def gen, 10 def main, 11 const MAX, 12 const routes, "
            "13 def Memo, 15 def foo, 16 def bar, 17 def legacy, 17 def legacy2, 18 def A.method, 19 def obj.method, 19 def obj.arrow, "
            "20 def inIf",
        ),
        ("a.tsx", "export const App = () => <div/>;", "1 def App"),
        (
            "a.ts",
            TYPESCRIPT,
            "2 class A, 3 def A.x, 4 def A.bar, 6 interface I, 7 type T, 8 enum E, 9 def N.f, 10 class M.C, "
            "11 def Comp, 12 def useStore, 13 const CONFIG, 13 def CONFIG.start, 15 def over, 16 def ambient, 17 const amb, 18 def foo.bar, "
            "19 class Broken, 20 def Broken.one, 21 def Broken.two, 22 def Broken.three, 24 def after",
        ),
        (
            "a.go",
            GO,
            "2 struct A, 4 interface B, 5 type C, 6 type D, 8 def A.F, 9 def G.H, 10 def K, 11 const Max, 13 const X, 13 const Y, 15 def handler",
        ),
        (
            "a.rs",
            RUST,
            "2 def Foo.a, 3 def Bar.b, 4 trait Tr, 4 def Tr.c, 5 struct m.S, 6 enum E, 7 type U, 8 macro mm, "
            "9 const MAX, 10 const GLOBAL, 11 const Box.K, 11 def Box.d",
        ),
        (
            "a.h",
            C,
            "2 struct Foo, 3 struct Bar, 4 type T, 5 def f, 6 struct S, 7 enum E, 10 def g, 12 type callback, "
            "14 const MAX, 15 macro FN, 16 const names",
        ),
        (
            "a.cc",
            CPP,
            "3 class n.A, 4 def n.A.f, 5 class n.A.C, 7 def n.A.g, 8 def n.A.~A, 9 enum n.E, 10 type n.X, 11 def n.h, "
            "12 def n.operator==, 14 def k, 15 const K, 16 def lam, 17 concept Cc, 18 class Exported, 19 struct S, 19 def S.operator int, "
            "19 def S.operator->, 20 def operator<",
        ),
        (
            "a.java",
            JAVA,
            "2 class A, 3 enum A.E, 3 def A.E.q, 4 record A.R, 5 interface A.I, 5 def A.I.f, 6 def A.A, 7 def A.g, "
            "8 const A.MAX, 8 const A.MIN, 10 record A.S, 10 def A.S.S, 11 interface A.J, 11 const A.J.K",
        ),
    ],
)
def test_symbols_of_each_language(path: str, text: str, expected: str) -> None:
    grammar = grammar_of(path)
    assert grammar is not None
    assert ", ".join(f"{s.line} {s.kind} {s.name}" for s in symbols_of(text, grammar)) == expected


@pytest.mark.parametrize("text", CPP_HEADERS)
def test_a_header_is_cpp_when_its_text_is(text: str) -> None:
    assert grammar_of("a.h", text) is grammar_of("a.hpp") is not grammar_of("a.h", C)


def test_a_type_of_a_thousand_parameters_keeps_its_name() -> None:
    text = f"impl {'A<' * 20_000}B{'>' * 20_000} {{ fn f() {{}} }}"
    assert [s.name for s in symbols_of(text, GRAMMARS[".rs"])] == ["A.f"]


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
    assert not UNREAD_SUFFIXES & GRAMMARS.keys()


@pytest.mark.parametrize(
    ("suffix", "same"),
    [("pyi", "py"), ("cjs", "js"), ("mts", "ts"), ("cts", "ts"), ("hh", "cpp"), ("cxx", "cpp"), ("hxx", "cpp")],
)
def test_the_other_suffixes_of_a_language(suffix: str, same: str) -> None:
    assert grammar_of(f"a.{suffix}") is grammar_of(f"a.{same}") is not None
