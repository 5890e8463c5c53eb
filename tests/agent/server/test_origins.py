"""Names that the server goes by and pages that may ask it: those that its owner has named, and no other."""

from collections.abc import Iterator

import pytest

from holdfast.agent.config import UsageError
from holdfast.agent.server.access import host_name, origin_of
from holdfast.agent.server.serve import reachable
from tests.agent.server.serving import MODEL, Server, served

NAME, APP, EXTENSION = "box.example", "https://app.example", "chrome-extension://abcdefghijklmnop"
PREFLIGHT = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("home"), names=["Box.Example"], origins=[APP, EXTENSION + "/"]) as server:
        yield server


@pytest.mark.parametrize("host", [NAME, f"{NAME}:8420", "BOX.example", "192.168.7.7:8420", "[fe80::1]:80", "localhost"])
def test_the_server_answers_to_its_names_and_to_addresses(named: Server, host: str) -> None:
    assert named.get("/v1/models", Host=host).status_code == 200


@pytest.mark.parametrize("host", ["box.example.evil", "abox.example", "example", "box"])
def test_no_other_name_is_its_own(named: Server, host: str) -> None:
    assert named.get("/v1/models", Host=host).status_code == 421


@pytest.mark.parametrize("origin", [APP, EXTENSION])
def test_a_page_of_an_allowed_origin_may_ask_and_read(named: Server, origin: str) -> None:
    with named.http(Origin=origin, Authorization="", **PREFLIGHT) as http:
        answer = http.request("OPTIONS", "/v1/responses")
    assert answer.status_code == 204 and answer.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
    for status, token in ((200, named.token), (401, "wrong")):  # a refusal can be read too
        answer = named.get("/v1/models", Origin=origin, Authorization=f"Bearer {token}")
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, origin)
        assert answer.headers["Vary"] == "Origin" and "Access-Control-Allow-Credentials" not in answer.headers
    fields = {"model": MODEL, "input": "hi", "stream": True, "max_output_tokens": 1}
    assert named.post("/v1/responses", fields, Origin=origin).headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize(
    "origin", ["https://app.example.evil", "http://app.example", "https://app.example:1", "null", ""]
)
def test_a_page_of_another_origin_gets_nothing(named: Server, origin: str) -> None:
    with named.http(Origin=origin, **PREFLIGHT) as http:
        answers = [http.request("OPTIONS", "/v1/responses"), http.get("/v1/models")]
    for answer in answers:
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_who_is_allowed_is_still_asked_for_a_token(named: Server) -> None:
    assert named.get("/v1/models", Origin=APP, Authorization="").status_code == 401
    with named.http(Origin=APP, Authorization="") as http:
        assert http.request("OPTIONS", "/v1/responses").status_code == 401  # no preflight: nothing is asked


@pytest.mark.parametrize("given", ["", "a b", "https://box", "box:80", "box/", "-x", "*"])
def test_what_is_no_name_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        host_name(given)


@pytest.mark.parametrize(
    "given", ["", "*", "null", "app.example", "https://", "https://a/b", "https://a b", "https://*.a"]
)
def test_what_is_no_origin_is_refused(given: str) -> None:
    with pytest.raises(UsageError):
        origin_of(given)


def test_what_is_printed_can_be_opened() -> None:
    assert reachable("http://127.0.0.1:8420", ("localhost",)) == "http://127.0.0.1:8420"
    assert reachable("http://0.0.0.0:8420", (NAME, "localhost")) == f"http://{NAME}:8420"
    host = reachable("http://0.0.0.0:8420", ("localhost",)).removeprefix("http://").removesuffix(":8420")
    assert host != "0.0.0.0" and host.count(".") == 3
    assert reachable("http://[::]:8420", ("localhost",)) == "http://[::1]:8420"
