"""Tokens of an issuer on the real server: their scopes, key rotation, and an issuer that is down."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.accounts.issuers import KEYS, Issuer, jwk, silent
from tests.program import Program, eventually, failing, running

KEY = "static-key-of-the-test"
METRICS_KEY = "metrics-key-of-the-test"
AUDIENCE = ("--oidc-audience", "tokka")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer("rsa")
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
def lasting() -> Iterator[Issuer]:
    issuer = Issuer("rsa", "p256")
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
def guarded(lasting: Issuer) -> Iterator[Program]:
    keys = ("--api-key", KEY, "--metrics-key", METRICS_KEY)
    with running("--engine", "fake", *keys, "--oidc-issuer", lasting.url, *AUDIENCE) as program:
        eventually(lambda: ask(program, lasting.token()).status_code == 200, 60)
        yield program


def ask(program: Program, credential: str, path: str = "/v1/models") -> httpx.Response:
    with program.client() as client:
        return client.get(path, headers={"authorization": f"Bearer {credential}"})


def events(program: Program) -> list[str]:
    return [line["event"] for line in program.log if str(line["event"]).startswith("oidc_")]


def test_token_has_the_permissions_of_its_scopes(guarded: Program, lasting: Issuer) -> None:
    assert ask(guarded, lasting.token("p256", algorithm="ES256", scope=["inference"])).status_code == 200
    for scope in ("metrics", "openid profile", None):
        refusal = ask(guarded, lasting.token(scope=scope))
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (403, "permission_denied")
        assert "`inference`" in refusal.json()["error"]["message"]
    assert ask(guarded, lasting.token(), "/admin/nothing").status_code == 403
    assert ask(guarded, lasting.token(scope="admin"), "/admin/nothing").status_code == 404


def test_static_keys_go_on_beside_tokens(guarded: Program) -> None:
    assert ask(guarded, KEY).status_code == 200


def test_every_wrong_token_gets_the_answer_of_a_wrong_key(guarded: Program, lasting: Issuer) -> None:
    expected = ask(guarded, "wrong")
    assert expected.status_code == 401
    good = lasting.token()
    wrong = [
        *(
            lasting.token(exp=int(time.time()) - 1),
            lasting.token(aud="other"),
            lasting.token(iss="https://evil.example"),
        ),
        *(
            lasting.token("other-rsa"),
            lasting.token(sub=""),
            good[:-1],
            f"{good}x",
            lasting.token(pad="x" * 900)[:512],
            f"x{good}",
            "a.b.c",
        ),
        *("..", "x" * 9000, f"{'x' * 3000}.{'x' * 3000}.{'x' * 3000}", lasting.token(pad="x" * 9000)),
    ]
    for token in wrong:
        answer = ask(guarded, token)
        assert (answer.status_code, answer.content) == (401, expected.content), token[:100]
        assert answer.headers["www-authenticate"] == "Bearer"


def test_long_tokens_are_accepted_and_keep_their_tenants_apart(guarded: Program, lasting: Issuer) -> None:
    groups = ["g" * 40] * 100
    for tenant in ("alice", "bob", "key-1"):
        # The tokens share their first 46 characters, the length of a generated key.
        token = lasting.token(groups=groups, sub=tenant)
        assert len(token) > 5000
        with guarded.client() as client:
            body = {"model": "fake", "prompt": "x", "max_tokens": 3}
            answer = client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 200
        metrics = ask(guarded, METRICS_KEY, "/metrics").text
        assert f'tokka_tokens_total{{kind="completion",model="fake",tenant="oidc:{tenant}"}} 3.0' in metrics
        assert token.rpartition(".")[2] not in metrics + str(guarded.log) + guarded.stderr()


def test_an_issuer_alone_closes_the_server(lasting: Issuer) -> None:
    # Also beyond loopback, where a server without keys does not start.
    for host in ("127.0.0.1", "0.0.0.0"):
        with (
            running("--engine", "fake", "--host", host, "--oidc-issuer", lasting.url, *AUDIENCE) as program,
            program.client() as client,
        ):
            assert client.get("/v1/models").status_code == 401
            assert client.get("/readyz").status_code == 200


def test_rotation_is_noticed_without_a_restart(issuer: Issuer) -> None:
    with running("--engine", "fake", "--oidc-issuer", issuer.url, *AUDIENCE) as program:
        eventually(lambda: ask(program, issuer.token()).status_code == 200, 60)
        issuer.keys = [jwk("other-rsa")]
        # The first request succeeds: the server holds it until it has the issuer's new keys.
        assert ask(program, issuer.token("other-rsa")).status_code == 200
        assert ask(program, issuer.token()).status_code == 401
        eventually(lambda: events(program) == ["oidc_keys_loaded"] * 2, 5)


def test_rotation_under_the_same_name_costs_no_request(issuer: Issuer) -> None:
    with running("--engine", "fake", "--oidc-issuer", issuer.url, *AUDIENCE) as program:
        eventually(lambda: ask(program, issuer.token()).status_code == 200, 60)
        for name in ("other-rsa", "rsa", "other-rsa"):
            issuer.keys = [jwk(name, kid="rsa")]
            assert ask(program, issuer.token(name, kid="rsa")).status_code == 200


def test_new_key_of_an_issuer_that_is_down_gets_503(issuer: Issuer) -> None:
    with running("--engine", "fake", "--oidc-issuer", issuer.url, *AUDIENCE) as program:
        eventually(lambda: ask(program, issuer.token()).status_code == 200, 60)
        issuer.stop()
        # The server does not know yet that the issuer is down.
        answer = ask(program, issuer.token("other-rsa"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "issuer_unavailable"


def test_an_issuer_that_is_down_is_nobodys_wrong_token(issuer: Issuer) -> None:
    issuer.stop()
    with running("--engine", "fake", "--api-key", KEY, "--oidc-issuer", issuer.url, *AUDIENCE) as program:
        assert ask(program, KEY, "/readyz").status_code == 200
        assert ask(program, KEY).status_code == 200
        answer = ask(program, issuer.token())
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "issuer_unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        for wrong in ("wrong", "a.b.c", issuer.token(exp=5)):
            assert ask(program, wrong).status_code == 401
        program.wait_for("oidc_issuer_down")
        issuer.start()
        eventually(lambda: ask(program, issuer.token()).status_code == 200, 60)
        issuer.stop()
        assert ask(program, issuer.token(jti="new")).status_code == 200
        # The server writes log lines in batches, so they may arrive late.
        eventually(lambda: events(program) == ["oidc_issuer_down", "oidc_keys_loaded"], 5)


def test_silent_issuer_delays_neither_requests_nor_shutdown(issuer: Issuer) -> None:
    issuer.answers[KEYS] = silent(issuer)
    with running("--engine", "fake", "--oidc-issuer", issuer.url, *AUDIENCE) as program:
        eventually(lambda: KEYS in issuer.asked, 60)
        assert ask(program, issuer.token()).status_code == 503
        assert program.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--oidc-issuer", "https://login.example.org"], "--oidc-audience"),
        (["--oidc-issuer", "login.example.org", *AUDIENCE], "--oidc-issuer"),
        (["--oidc-issuer", "http://login.example.org", *AUDIENCE], "--oidc-issuer"),
        ([*AUDIENCE], "--oidc-issuer"),
    ],
)
def test_half_a_configuration_is_refused(arguments: list[str], named: str) -> None:
    code, lines = failing("--engine", "fake", *arguments)
    assert (code, len(lines)) == (2, 1)
    assert named in lines[0]
