"""The process in which source is parsed: one request after another on stdin, one answer each on stdout.

A parser in C holds the interpreter's lock, and hostile text can crash it or keep it busy for ever: here it harms no one else.
Limits of its memory and of its time for one text are set here, so that they hold even when the parent is gone.

A request is a line of JSON, `{"path": ..., "size": ...}`, and so many bytes of UTF-8. An answer is a line of JSON: a list of
[line, kind, name]. Must import nothing but the languages: it starts in a twentieth of the agent's time.
"""

import json
import resource
import signal
import sys

from holdfast.tools.symbols.definitions import symbols_of
from holdfast.tools.symbols.languages import grammar_of

MAX_MEMORY_BYTES = 2**30  # of address space; a text of 16 MB takes a quarter
MIN_CPU_S, BYTES_PER_CPU_S = 3, 200_000  # for one text; a slow machine parses a megabyte a second
MAX_IDLE_S = 60  # then it ends; the parent starts another when it has a text


def serve() -> None:
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most_cpu_s = resource.getrlimit(resource.RLIMIT_CPU)[1]
    while True:
        signal.alarm(MAX_IDLE_S)
        request = sys.stdin.buffer.readline()
        signal.alarm(0)
        if not request:
            return
        asked = json.loads(request)
        text = sys.stdin.buffer.read(asked["size"]).decode()
        used = resource.getrusage(resource.RUSAGE_SELF)
        end_s = int(used.ru_utime + used.ru_stime) + MIN_CPU_S + asked["size"] // BYTES_PER_CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (end_s, most_cpu_s))
        grammar = grammar_of(asked["path"], text)
        assert grammar is not None, asked
        symbols = symbols_of(text, grammar)
        sys.stdout.write(json.dumps([(s.line, s.kind, s.name) for s in symbols]) + "\n")
        sys.stdout.flush()
