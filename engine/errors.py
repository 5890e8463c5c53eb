"""What the engine raises for what the world can break: messages name the thing, the value and the way out."""


class EngineError(Exception):
    """The model directory, the request or the machine does not allow what was asked."""


class CheckpointError(EngineError):
    """A checkpoint that is incomplete, damaged or of another model."""


class ContextFull(EngineError):
    """A sequence would grow past `max_context`."""


class StateError(EngineError):
    """Stored state that is no state of this model."""


class RankLost(EngineError):
    """Another rank of the engine has ended; none can go on without it."""
