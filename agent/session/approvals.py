"""Approvals: which calls run without asking, which wait for the user, which are refused.

Owns the policy, which is separate from what a tool could do if it ran (the sandbox's business). Must not know how a
user is asked. It fails closed: a call that nobody can approve is refused.
"""

from collections.abc import Awaitable, Callable
from enum import StrEnum

from holdfast.agent.events import ApprovalNeeded
from holdfast.tools import Permission, Risk

Ask = Callable[[ApprovalNeeded], Awaitable[bool]]


class Policy(StrEnum):
    """The risks that are allowed: reading always is. `ask` lets the user decide about everything else."""

    ASK = "ask"
    READ = "read"
    EDIT = "edit"
    ALL = "all"


ALLOWED = {
    Policy.ASK: {Risk.READ},
    Policy.READ: {Risk.READ},
    Policy.EDIT: {Risk.READ, Risk.EDIT},
    Policy.ALL: set(Risk),
}


class Approvals:
    """A policy, and the way to ask somebody if there is one."""

    def __init__(self, policy: Policy, ask: Ask | None = None):
        self.policy = policy
        self._ask = ask

    def allows(self, permission: Permission) -> bool:
        """Whether a call runs without asking.

        What is refused already does nothing: who could be asked about it need not be.
        """
        return permission.risk in ALLOWED[self.policy] or (self.asks and permission.refusal is not None)

    @property
    def asks(self) -> bool:
        """Whether somebody can be asked about what is not allowed."""
        return self.policy is Policy.ASK and self._ask is not None

    async def ask(self, call: ApprovalNeeded) -> bool:
        """The user's answer; no without anybody to ask."""
        return self._ask is not None and await self._ask(call)

    def refusal(self, name: str) -> str:
        """What the model is told about a call that did not run."""
        if self.asks:
            return f"error: the user refused this call of {name}; do not repeat it, ask what to do instead"
        why = "nobody can be asked here" if self.policy is Policy.ASK else f"approvals are set to {self.policy}"
        return f"error: {name} is not allowed: {why}; answer without it"
