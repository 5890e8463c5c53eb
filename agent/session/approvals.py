"""Approvals: which calls run without asking, which wait for the user, which are refused.

Owns the decision, from rules and mode; what a tool could do if it ran is the sandbox's business. Must not know how a
user is asked. It fails closed: a call that nobody can approve is refused.
"""

from dataclasses import dataclass
from enum import Enum

from holdfast.agent.events import Answer, ApprovalNeeded, Ask, ToolCallMade
from holdfast.agent.permissions.command_line import offered
from holdfast.agent.permissions.modes import Mode, Policy
from holdfast.agent.permissions.rules import SHELL, Effect, Rule, Rules
from holdfast.tools import Permission, Risk

ALLOWED = {
    Policy.PLAN: {Risk.READ},
    Policy.ASK: {Risk.READ},
    Policy.READ: {Risk.READ},
    Policy.EDIT: {Risk.READ, Risk.EDIT},
    Policy.ALL: set(Risk),
}
MAX_REASON_CHARS = 2000


class Verdict(Enum):
    RUN, ASK, REFUSE = range(3)


@dataclass(frozen=True)
class Decision:
    """`why` is what the model is told of a call that does not run."""

    verdict: Verdict
    why: str = ""


class Approvals:
    """A mode, and the way to ask somebody if there is one."""

    def __init__(self, policy: Policy, ask: Ask | None = None):
        self.mode = Mode(policy)
        self._ask = ask

    @property
    def policy(self) -> Policy:
        return self.mode.policy

    def decide(self, name: str, permission: Permission, rules: Rules) -> Decision:
        """A denial beats a permission, and both beat the mode. What would fail already does nothing: nobody need be
        asked.
        """
        if rule := rules.denying(name, permission):
            return refuse(name, f"the user's rule {rule} forbids it")
        if permission.refusal is not None and self._asks:
            return Decision(Verdict.RUN)
        if self.policy is Policy.PLAN and permission.risk is not Risk.READ:
            why = (
                "is not allowed in plan mode: read, and answer with a plan; the user decides whether it is carried out"
            )
            return Decision(Verdict.REFUSE, f"error: {name} {why}")
        if permission.risk in ALLOWED[self.policy] or rules.allowing(name, permission):
            return Decision(Verdict.RUN)
        if self._asks:
            return Decision(Verdict.ASK)
        is_open = self.policy is Policy.ASK
        return refuse(name, "nobody can be asked here" if is_open else f"approvals are set to {self.policy}")

    async def ask(self, call: ApprovalNeeded) -> Answer:
        """The user's answer; no without anybody to ask."""
        return await self._ask(call) if self._ask is not None else Answer(approve=False)

    @property
    def _asks(self) -> bool:
        """Whether somebody can be asked about what is not allowed."""
        return self.policy is Policy.ASK and self._ask is not None


def refuse(name: str, why: str) -> Decision:
    return Decision(Verdict.REFUSE, f"error: {name} is not allowed: {why}; answer without it")


def answered(name: str, answer: Answer) -> Decision:
    """What follows from the user's answer."""
    if answer.approve:
        return Decision(Verdict.RUN)
    reason = " ".join(answer.reason.split())[:MAX_REASON_CHARS]
    said = f": {reason}" if reason else "; do not repeat it, ask what to do instead"
    return Decision(Verdict.REFUSE, f"error: the user refused this call of {name}{said}")


def question(made: ToolCallMade, permission: Permission) -> ApprovalNeeded:
    """A call as it is asked about, with what `always` would do: an edit lets edits run from now on, another call writes
    a rule.
    """
    call = made.model_dump(exclude={"type"})
    if permission.risk is Risk.EDIT:
        return ApprovalNeeded(**call, preview=permission.preview, always_mode=Policy.EDIT)
    rule = rule_offered(made.name, permission)
    return ApprovalNeeded(**call, preview=permission.preview, always_rule=str(rule) if rule else "")


def rule_offered(name: str, permission: Permission) -> Rule | None:
    """The rule that lets a call like this run the next time, as narrow as it is useful."""
    if len(permission.subjects) != 1:
        return None
    subject = permission.subjects[0]
    pattern = offered(subject) if name == SHELL else subject if "*" not in subject else None
    return Rule(Effect.ALLOW, name, pattern) if pattern else None
