"""SIGKILL of a server under load, many times: every acknowledged response is there afterwards and goes on.

`python -m tests.long.server_kills [KILLS]` (default 50; about five seconds each)
"""

import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import openai

from tests.agent.server.serving import ASK, KNOWN, TELL, origins
from tests.agent.server.test_durable import Process, create

CLIENTS = 4


def main(num_kills: int) -> int:
    acknowledged: list[Any] = []

    def work(client: openai.OpenAI) -> None:
        before: dict[str, Any] = {}
        try:
            while True:
                response = create(client, ASK if before else TELL, **before)
                acknowledged.append(response)
                before = {"previous_response_id": response.id}
        except openai.OpenAIError:
            pass

    checked, rng = 0, random.Random(1)
    with tempfile.TemporaryDirectory() as home:
        for kill in range(num_kills):
            server = Process(Path(home))
            for response in acknowledged[checked:]:
                assert server.client.responses.retrieve(response.id) == response, response.id
            checked = len(acknowledged)
            if acknowledged:
                after = create(server.client, ASK, previous_response_id=acknowledged[-1].id)
                assert after.output_text.strip() == KNOWN and origins(after)["prefilled_again_tokens"] >= 0
            threads = [threading.Thread(target=work, args=(server.client,)) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            time.sleep(rng.uniform(0.05, 2.0))
            server.end(signal.SIGKILL)
            for thread in threads:
                thread.join()
            print(
                f"kill {kill + 1}: {len(acknowledged)} acknowledged, all of the {checked} before it are there",
                flush=True,
            )
        server = Process(Path(home))
        for response in acknowledged:
            assert server.client.responses.retrieve(response.id) == response, response.id
        server.end(signal.SIGTERM)
    print(f"{num_kills} kills, {len(acknowledged)} responses, none lost")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
