"""Opens the model that the settings name: the engine of this process, or an endpoint.

Must not know sessions.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from holdfast.agent.config import Settings
from holdfast.agent.encoding.encode import ProtocolTexts
from holdfast.agent.events import Notice
from holdfast.agent.models.remote.chat import ChatModel
from holdfast.agent.models.remote.model import RemoteModel
from holdfast.agent.models.remote.tokens import TokenModel
from holdfast.engine import Engine, EngineConfig, Tokenizer

AnyModel = Engine | RemoteModel


def protocol_texts(settings: Settings) -> ProtocolTexts:
    """Texts of the model's directory. Our own for a log in pocket's vocabulary: pocket's texts name no tools."""
    if settings.endpoint is not None and settings.endpoint.tokenizer is None:
        return ProtocolTexts()
    return ProtocolTexts.from_dir(settings.model_dir)


@asynccontextmanager
async def open_model(
    settings: Settings, texts: ProtocolTexts, config: EngineConfig, tell: Callable[[Notice], None]
) -> AsyncIterator[AnyModel]:
    """`tell` gets what a start or an endpoint makes the user wait for. Raises EngineError."""

    def on_compile(number: int, total: int) -> None:
        tell(Notice(message=f"compiling kernels for this machine, once: {number} of {total}"))

    if settings.endpoint is None:
        async with Engine.open(settings.model_dir, config, on_compile) as engine:
            yield engine
        return
    endpoint, tokenizer = settings.endpoint, Tokenizer.from_dir(settings.model_dir)
    context = int(endpoint.context * endpoint.share)
    if settings.max_context is not None:
        context = min(context, settings.max_context)

    def note(line: str) -> None:
        tell(Notice(message=line))

    remote: RemoteModel
    if endpoint.api == "chat":
        remote = ChatModel(endpoint, tokenizer, texts, config, context, note)
    else:
        remote = TokenModel(endpoint, tokenizer, config, context, note)
    async with aclosing(remote):
        yield remote
