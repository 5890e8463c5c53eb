"""The modes of permission: what runs without asking where no rule says otherwise.

Loads nothing of the tools: a terminal that uses a server has none.
"""

from enum import StrEnum


class Policy(StrEnum):
    """Reading always runs. `plan` and `read` refuse all else, `ask` leaves it to the user; `edit` lets edits run, `all`
    everything.
    """

    PLAN = "plan"
    ASK = "ask"
    READ = "read"
    EDIT = "edit"
    ALL = "all"


class Mode:
    """The policy of a session's front end, and the one that comes back when planning ends."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self._former = Policy.ASK if policy is Policy.PLAN else policy

    def set(self, policy: Policy) -> None:
        if self.policy is not Policy.PLAN:
            self._former = self.policy
        self.policy = policy

    def end_plan(self) -> None:
        """Go on as before the plan."""
        self.policy = self._former
