"""The body of `POST /v1/responses`, checked. Must not know messages, tokens or sockets."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, StringConstraints

from holdfast.agent.server.json import ApiError, Json, bad, unsupported
from holdfast.agent.server.responses.allowed_tools import allowed
from holdfast.agent.server.validation import Body, Objects, Short, Unsupported, checked
from holdfast.engine import Constraint, EngineError

MAX_ITEMS = 20_000
MAX_TOOLS = 512
MAX_TEXT_CHARS = 12_000_000
NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")
OWN_EVENTS = "holdfast:events"  # in `include`: events and fields that the protocol does not have are sent too

INCLUDABLE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    OWN_EVENTS,
)
NO_PROBABILITIES = "this server tells no probabilities of tokens, leave it out"
NO_PENALTIES = "leave it 0"
UNSUPPORTED: Unsupported = {
    "top_logprobs": ((0,), NO_PROBABILITIES),
    "presence_penalty": ((0,), NO_PENALTIES),
    "frequency_penalty": ((0,), NO_PENALTIES),
    "prompt": ((), "send its text as instructions and input"),
    "context_management": (([],), "send truncation: auto, or shorten it with POST /v1/responses/compact"),
    "moderation": ((), "leave it out"),
    # of chat completions: they would change the answer there
    "messages": ((), "send input"),
    "max_tokens": ((), "send max_output_tokens"),
    "max_completion_tokens": ((), "send max_output_tokens"),
    "response_format": ((), "send text.format"),
    "reasoning_effort": ((), "send reasoning.effort"),
    "n": ((1,), "ask once for each answer"),
    "logit_bias": (({},), "leave it out"),
    "logprobs": ((False,), NO_PROBABILITIES),
    "functions": (([],), "send tools"),
    "function_call": ((), "send tool_choice"),
}

HOSTED = ("web_search", "file_search", "code_interpreter", "image_generation", "computer", "mcp", "tool_search")

Stop = Annotated[str, StringConstraints(min_length=1, max_length=512)]
MAX_METADATA = 16


def _few(metadata: Any) -> Any:
    if isinstance(metadata, dict) and len(metadata) > MAX_METADATA:  # before each of them is looked at
        raise ValueError(f"there are {len(metadata)} pairs, and {MAX_METADATA} are the most")
    return metadata


Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    BeforeValidator(_few),
]


class Reasoning(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: str | None = None


class ConversationRef(Body):
    id: Short


class Create(Body):
    """A request for a response."""

    model: Short
    input: str | Objects = Field(default_factory=list, max_length=MAX_TEXT_CHARS)
    instructions: str | None = None
    previous_response_id: Short | None = None
    conversation: Short | ConversationRef | None = None
    tools: Objects = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: str | Json = "auto"
    parallel_tool_calls: bool = True
    max_output_tokens: int | None = Field(None, ge=1, le=2**31)
    max_tool_calls: int | None = Field(None, ge=1, le=2**31)
    reasoning: Reasoning | None = None
    text: Json = Field(default_factory=dict)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int = Field(
        0, ge=-1, le=2**31
    )  # of other servers, as are min_p, stop and seed; 0 and -1 leave everything in
    min_p: float = Field(0.0, ge=0, lt=1)
    truncation: Literal["auto", "disabled"] = "disabled"
    store: bool = True
    stream: bool = False
    background: bool = False
    include: list[Short] = Field(default_factory=list, max_length=32)
    metadata: Metadata = Field(default_factory=dict)
    service_tier: Short = "default"
    user: Short | None = None
    safety_identifier: Short | None = None
    prompt_cache_key: Short | None = None
    generate: bool = True
    stop: list[Stop] = Field(default_factory=list, max_length=16)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    _asked: Json = PrivateAttr(default_factory=dict)

    def narrowed(self) -> "Create":
        """The request without the tools that `allowed_tools` excludes. Raises ApiError."""
        choice = self.tool_choice
        if isinstance(choice, str) or choice.get("type") != "allowed_tools":
            return self
        function_tools(self.tools)
        tools, mode = allowed(self.tools, choice)
        found = self.model_copy(update={"tools": tools, "tool_choice": mode})
        found._asked = self.shown
        return found

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that it belongs to, if any."""
        return self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation

    @property
    def shown(self) -> Json:
        """`tools` and `tool_choice` as they were sent."""
        return {"tools": self.tools, "tool_choice": self.tool_choice, **self._asked}


def create_request(body: Json) -> Create:
    """The request from its body. Raises ApiError that names the parameter."""
    request = checked(Create, body, UNSUPPORTED)
    if isinstance(request.input, list) and len(request.input) > MAX_ITEMS:
        raise bad(f"input has {len(request.input)} items, and {MAX_ITEMS} are the most", "input")
    if request.conversation is not None and request.previous_response_id is not None:
        raise bad("conversation says what to go on from: leave out previous_response_id", "conversation")
    for number, name in enumerate(request.include):
        if name not in INCLUDABLE:
            where = f"include[{number}]"
            raise unsupported(f"{where}: {name[:60]!a} cannot be included, leave it out", where)
    if request.background and not request.store:
        raise bad("background needs store", "background")
    constraint_of(request)
    return request.narrowed()


def constraint_of(request: Create) -> Constraint | None:
    """The constraint of `text.format`; None for plain text, and if the answer must be a call. Raises ApiError."""
    format_ = request.text.get("format") or {"type": "text"}
    kind = format_.get("type") if isinstance(format_, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise bad("text.format.type must be text, json_object or json_schema", "text.format")
    if kind == "text":
        return None
    name = format_.get("name")
    is_schema = kind == "json_schema"
    if is_schema and not (isinstance(name, str) and NAME.fullmatch(name) and isinstance(format_.get("schema"), dict)):
        raise bad("text.format needs a name and a schema that is an object", "text.format")
    try:
        constraint = Constraint.json_schema(format_["schema"]) if is_schema else Constraint.json_object()
    except EngineError as e:
        raise bad(f"text.format: {e}", "text.format") from None
    return constraint if request.tool_choice in ("auto", "none") else None


def function_tools(tools: list[Json]) -> list[Json]:
    """The function tools as the model gets them: name, description, parameters. In a namespace the name is
    `NAMESPACE.NAME`. Hosted tools are left out. Raises ApiError."""
    functions: list[Json] = []
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        if tool.get("type") == "namespace":
            inner, prefix = tool.get("tools"), tool.get("name")
            if not isinstance(inner, list) or not isinstance(prefix, str) or not NAME.fullmatch(prefix):
                raise bad(f"{where} needs a name, and tools that are a list", where)
            functions += [_function(each, f"{where}.tools[{at}]", f"{prefix}.") for at, each in enumerate(inner)]
        elif not is_hosted(tool):
            functions.append(_function(tool, where))
        names = [function["name"] for function in functions]
        if len(names) > MAX_TOOLS:
            raise bad(f"there are more than {MAX_TOOLS} tools", "tools")
        if len(set(names)) < len(names):
            raise bad(f"{where}.name {names[-1]} is given twice", f"{where}.name")
    return functions


def _function(tool: Any, where: str, prefix: str = "") -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise unsupported(f"{where}: only function tools are supported", where)
    name, about, schema = tool.get("name"), tool.get("description"), tool.get("parameters")
    if not isinstance(name, str) or not NAME.fullmatch(name) or not NAME.fullmatch(prefix + name):
        raise bad(f"{where}.name must be 1-128 letters, digits, '_', '.' or '-'", f"{where}.name")
    if not isinstance(about, str | None) or not isinstance(schema, dict | None):
        raise bad(f"{where} needs a description that is text and parameters that are an object", where)
    return {"name": prefix + name, "description": about or "", "parameters": schema or {}}


def strict_places(tools: list[Json]) -> dict[str, str]:
    """The strict tools: from the name that the model uses to the field of the request."""
    places: dict[str, str] = {}
    for number, tool in enumerate(tools):
        if tool["type"] != "namespace":
            inner = [(f"tools[{number}]", tool, "")]
        else:
            inner = [
                (f"tools[{number}].tools[{at}]", each, f"{tool['name']}.") for at, each in enumerate(tool["tools"])
            ]
        places |= {prefix + each["name"]: where for where, each, prefix in inner if each.get("strict") is True}
    return places


def is_hosted(tool: Json) -> bool:
    """Whether a tool is one that another provider runs on its servers: it is left out."""
    return isinstance(kind := tool.get("type"), str) and kind.startswith(HOSTED)


def full_name(item: Json) -> str:
    """The name of the function that an item calls, as the model uses it."""
    return f"{item['namespace']}.{item['name']}" if item.get("namespace") else str(item["name"])


def namespaces_of(tools: list[Json]) -> dict[str, Json]:
    """For functions in namespaces: from the name that the model uses to the fields of a call item."""
    return {
        f"{tool['name']}.{inner['name']}": {"namespace": tool["name"], "name": inner["name"]}
        for tool in tools
        if tool["type"] == "namespace"
        for inner in tool["tools"]
    }


def forced_call(request: Create, functions: list[Json]) -> tuple[Literal["none", "auto", "required"], str | None]:
    """The mode of `tool_choice`, and the function that it names, if any. Raises ApiError."""
    choice = request.tool_choice
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise bad("tool_choice must be none, auto, required, or name a function", "tool_choice")
        if choice == "required" and not functions:
            raise bad("tool_choice is required, but there are no tools", "tool_choice")
        return choice, None  # type: ignore[return-value]
    if choice.get("type") != "function":
        raise unsupported("tool_choice can only name a function", "tool_choice")
    name = full_name({"name": None, **choice})
    if not any(function["name"] == name for function in functions):
        raise bad("tool_choice names a function that is not among the tools", "tool_choice")
    return "required", name


def stream_id_of(body: Json) -> str | None:
    """The lane of a WebSocket message; None is the lane without a name. Raises ApiError."""
    lane = body.get("stream_id")
    if lane is None or (isinstance(lane, str) and STREAM_ID.fullmatch(lane)):
        return lane
    text = "The 'stream_id' field must be 1 to 256 letters, digits, '_', '.' or '-'."
    raise ApiError(400, text, "invalid_stream_id", "stream_id")
