"""A worker on another host, started by hand, and the end of the cable to it."""

from __future__ import annotations

import json
import subprocess
import time

from tests.faults.streams import streaming
from tests.fleet.gateway import Gateway, fake, serving
from tests.fleet.hosts import HOST, INSIDE, another_host, ip
from tests.program import TOKKA, eventually
from tokka.fleet.token_file import TOKEN_NAME


def start(gateway: Gateway) -> subprocess.Popen[bytes]:
    join = json.loads(gateway.file.read_text())["join"]
    words = [*INSIDE, str(TOKKA), "worker", "--join", join, "--join-token-file", str(gateway.state / TOKEN_NAME)]
    words += ["--served-model-name", "m", "--worker-id", "far", "--engine", "fake", "--engine-arg", "step_s=0.02"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_vanished_host_is_noticed_in_5_s_and_comes_back() -> None:
    with another_host(), serving({"m": fake(1)}, host=HOST) as gateway:
        (near,) = gateway.ready()
        process = start(gateway)
        try:
            # The plan wants one replica. It neither stops the worker that it has not started, nor its own.
            near, far = gateway.ready(2)
            bodies = [{"prompt": f"stream {place}", "max_tokens": 350, "ignore_eos": True} for place in range(6)]
            with streaming(gateway.program, bodies) as streams:
                ip("link", "set", "tkf0", "down")
                began_s = time.monotonic()
                assert gateway.ask().status_code == 200
            ends = [stream.terminals() for stream in streams]
            assert sorted(ends) == [["engine_error"]] * 3 + [["length"]] * 3
            assert max(stream.ended_s for stream in streams if stream.terminals() == ["engine_error"]) - began_s < 5.5
            assert gateway.ready() == [near]
            ip("link", "set", "tkf0", "up")
            assert far in gateway.ready(2)
            assert gateway.program.stop() == 0
            # Only workers of this machine end with the gateway.
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait(30)
        eventually(lambda: not near.runs, 5)
