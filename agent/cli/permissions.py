"""The commands `holdfast permissions list|add|rm`: the rules of what may run, which a person may also edit in their
file.
"""

import argparse
from pathlib import Path

from holdfast.agent.config import Failure, UsageError, data_home, printable, workspace_directory
from holdfast.agent.permissions.rules import RuleError, rule_of
from holdfast.agent.permissions.rules_file import BrokenRules, RulesFile, table_of
from holdfast.agent.terminal.sanitize import exact


def run(args: argparse.Namespace) -> int:
    """Do one of the three. Raises UsageError for a text that is no rule, Failure for a file that is broken."""
    workspace = workspace_directory(args.workspace or ".")
    if args.action_name == "list":
        print(listed(data_home(), workspace))
        return 0
    try:
        rule, table = rule_of(args.rule), table_of(None if args.user else workspace)
        file = RulesFile(data_home())
        if args.action_name == "add":
            file.add(table, rule)
        elif not file.remove(table, rule):
            raise UsageError(f"there is no {exact(str(rule))} in [{printable(table)}] of {printable(str(file.path))}")
    except RuleError as e:
        raise UsageError(str(e)) from None
    except BrokenRules as e:
        raise Failure(str(e)) from None
    print(listed(data_home(), workspace))
    return 0


def listed(home: Path, workspace: Path) -> str:
    """The tables that hold in a workspace, as in their file, and where that is."""
    file = RulesFile(home)
    try:
        tables = file.tables()
    except BrokenRules as e:
        return str(e)
    lines = []
    for table in (table_of(None), str(workspace)):
        if rules := tables.get(table):
            lines += [f"[{exact(table)}]", *(exact(str(rule)) for rule in rules)]
    where = exact(str(file.path))
    return "\n".join([*lines, f"in {where}"]) if lines else f"no rule holds here; they would be in {where}"
