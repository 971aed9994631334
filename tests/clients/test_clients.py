"""Published client packages, each in its own process and environment, against the real engine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.clients.checks import BY_CHECK, CLIENTS, PERSON, QUESTION, STOP, missing, run_check
from tests.program import Program
from tests.wire import post
from tokka.engine.vllm.start.embedded import embedded_model
from tokka.settings import Settings

Facts = dict[str, Any]
FactsOf = Callable[[str], Facts]
# instructor returns only objects, and lm-eval builds its own requests.
CHATTING = [check for check in BY_CHECK if check not in {"instructor", "lm_eval"}]
STOPPING = [check for check in CHATTING if check not in {"agents", "aitta"}]
CONTINUING = ["openai", "openai_node", "langchain", "litellm", "llama_index"]
# Maximum difference of log-likelihoods: they depend slightly on other requests in the same step. The tests compare
# texts word by word only if the model is sure: each token is at least about e times as likely as the next candidate.
BATCH_NOISE = 0.3
CALLING = [check for check in CHATTING if check not in {"pydantic_ai", "aitta"}]
HELD_TO_A_FORM = [check for check in BY_CHECK if check not in {"llama_index", "aitta", "lm_eval"}]

pytestmark = [pytest.mark.engine, pytest.mark.clients]


@pytest.fixture(scope="module")
def running_checks(smollm2: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Facts]]]:
    """Start all checks that can run, two at a time."""
    tokenizer = embedded_model(Settings().cache_dir, print, lambda: None)
    with ThreadPoolExecutor(2) as pool:
        yield {
            client.check: pool.submit(
                run_check, client, smollm2.url, smollm2.model, tokenizer, tmp_path_factory.mktemp(client.check)
            )
            for client in CLIENTS
            if missing(client) is None
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture
def facts_of(request: pytest.FixtureRequest) -> FactsOf:
    """Return a function that waits for a client's check and returns the facts it printed."""

    def facts(check: str) -> Facts:
        if reason := missing(BY_CHECK[check]):
            if os.environ.get("CI") == "true" or os.environ.get("TOKKA_CLIENTS") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        found: dict[str, Future[Facts]] = request.getfixturevalue("running_checks")
        return found[check].result()

    return facts


@pytest.fixture(scope="module")
def http(smollm2: Program) -> Iterator[httpx.Client]:
    with smollm2.client() as client:
        yield client


def chat(http: httpx.Client, model: str, **fields: Any) -> Facts:
    """Return the server's response to a plain request: every client must arrive at the same answer."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24}
    return post(http, "/v1/chat/completions", {**body, **fields})


@pytest.mark.parametrize("check", CHATTING)
def test_an_answer_is_the_servers_and_its_pieces_add_up_to_it(
    facts_of: FactsOf, http: httpx.Client, smollm2: Program, check: str
) -> None:
    facts, answer = facts_of(check), chat(http, smollm2.model)
    text = answer["choices"][0]["message"]["content"]
    assert "Tokyo" in text
    assert facts["answer"] == text == "".join(facts["pieces"])
    # A slow client gets several tokens in one piece.
    assert len(facts["pieces"]) > 1
    assert facts["usage"] == facts["stream_usage"]
    assert facts["usage"] == [answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]]
    assert facts.get("async_answer", text) == text
    assert facts.get("scored", text) == text
    assert facts.get("batch", [text]) in ([text], [text, text])


@pytest.mark.parametrize("check", [check for check in CHATTING if check != "agents"])
def test_a_limit_cuts_and_a_stop_stops(facts_of: FactsOf, http: httpx.Client, smollm2: Program, check: str) -> None:
    facts = facts_of(check)
    whole = facts["answer"]
    (cut,) = chat(http, smollm2.model, max_tokens=3)["choices"]
    assert facts["cut"] == [cut["message"]["content"], "length"]
    if check in STOPPING:
        assert facts["stopped"] == [whole.partition(STOP)[0], "stop"]
        assert STOP in whole


@pytest.mark.parametrize("check", CONTINUING)
def test_a_text_is_continued(facts_of: FactsOf, http: httpx.Client, smollm2: Program, check: str) -> None:
    body = {"model": smollm2.model, "prompt": "1, 2, 3, 4, 5, 6,", "max_tokens": 5, "temperature": 0}
    text = post(http, "/v1/completions", body)["choices"][0]["text"]
    assert text
    facts = facts_of(check)
    assert facts["continued"] == text
    assert facts.get("streamed_text", text) == text


@pytest.mark.parametrize("check", HELD_TO_A_FORM)
def test_an_object_has_the_form_that_was_asked_for(facts_of: FactsOf, check: str) -> None:
    person = facts_of(check)["person"]
    assert set(person) == {"name", "age", "mood"}
    # The model is small, but it repeats the facts of the question.
    assert (person["name"], person["age"]) == ("Matti Virtanen", 42)
    assert person["mood"] in {"calm", "cheerful", "tired"}


@pytest.mark.parametrize("check", list(BY_CHECK))
def test_client_raises_its_own_exception_with_the_servers_message(
    facts_of: FactsOf, smollm2: Program, check: str
) -> None:
    kind, said = facts_of(check)["error"]
    assert kind == BY_CHECK[check].error
    if check == "lm_eval":
        assert "404 Client Error" in said
    else:
        assert "no-such-model" in said
        # Aitta's client has its own message.
        assert check == "aitta" or f"Served to you: {smollm2.model}" in said


@pytest.mark.parametrize("check", list(BY_CHECK))
def test_nobody_else_is_contacted_and_headers_arrive(facts_of: FactsOf, smollm2: Program, check: str) -> None:
    assert facts_of(check)["contacted"] == ["127.0.0.1"]
    assert f"check-{check}" in {line.get("request_id") for line in smollm2.log}


@pytest.mark.parametrize("check", list(BY_CHECK))
def test_the_example_of_the_document_answers(
    facts_of: FactsOf, http: httpx.Client, smollm2: Program, check: str
) -> None:
    printed = facts_of(check)["example"]
    if check == "lm_eval":
        assert re.search(r"\|\s*acc\s*\|↑\s*\|\s*1\|", printed)
    elif check == "instructor":
        assert re.fullmatch(r"country='.+' capital='.+'\n", printed)
    else:
        assert printed == chat(http, smollm2.model, max_tokens=50)["choices"][0]["message"]["content"] + "\n"


@pytest.mark.parametrize("check", CALLING)
def test_a_call_that_must_come_comes(facts_of: FactsOf, check: str) -> None:
    facts = facts_of(check)
    name, arguments = facts["call"]
    assert (name, set(arguments)) == ("get_weather", {"city"})
    assert arguments["city"] in {"Oulu", "Turku"}
    streamed: Any = facts.get("streamed_call", facts["call"])
    assert streamed[0] == name
    # The client returned the function's result, and the model answered.
    assert facts.get("after", "text")


@pytest.mark.parametrize("check", ["instructor", "pydantic_ai"])
def test_an_object_comes_by_way_of_a_call(facts_of: FactsOf, check: str) -> None:
    # In a tool call the model invents the age, so only the keys are compared.
    assert set(facts_of(check)["by_call"]) == {"name", "age", "mood"}


# -- single clients ----------------------------------------------------------------------------------------------


def test_openai_gets_several_answers_and_scores_tokens(facts_of: FactsOf, smollm2: Program) -> None:
    facts = facts_of("openai")
    assert len(set(facts["several"])) > 1
    assert all(-10 < logprob <= 0 for logprob in facts["logprobs"])
    assert facts["echoed"] == "".join(facts["echoed_tokens"]) == "1, 2, 3, 4, 5, 6," + facts["continued"]
    assert facts["models"][0] == smollm2.model


@pytest.mark.parametrize("check", ["langchain", "litellm"])
def test_several_answers_come_at_once(facts_of: FactsOf, check: str) -> None:
    assert facts_of(check)["several"] == 3


def test_instructor_fills_an_object_part_by_part(facts_of: FactsOf, http: httpx.Client, smollm2: Program) -> None:
    facts = facts_of("instructor")
    assert facts["parts"] > 1
    assert facts["last_part"] == facts["person"]
    plain = chat(http, smollm2.model, messages=[{"role": "user", "content": PERSON}])
    assert facts["usage"][0] == plain["usage"]["prompt_tokens"]


def test_instructor_asks_once_more_if_its_object_is_refused(facts_of: FactsOf) -> None:
    facts = facts_of("instructor")
    assert facts["tries"] == 2
    assert set(facts["by_second_call"]) == {"name", "age", "mood"}


def test_aitta_lists_the_model(facts_of: FactsOf, smollm2: Program) -> None:
    assert facts_of("aitta")["models"][0] == smollm2.model


def test_lm_eval_finds_the_likelihoods_of_the_api(facts_of: FactsOf, http: httpx.Client, smollm2: Program) -> None:
    facts = facts_of("lm_eval")
    assert facts["accuracy"] == 1

    def tokens(text: str) -> list[int]:
        found: list[int] = post(http, "/tokenize", {"prompt": text})["tokens"]
        return found

    def logprobs(prompt: list[int]) -> tuple[list[float], list[dict[str, float]]]:
        body = {"model": smollm2.model, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1}
        found = post(http, "/v1/completions", body)["choices"][0]["logprobs"]
        return found["token_logprobs"], found["top_logprobs"]

    scored = [(*pair, response) for one in facts["likelihoods"] for *pair, response in one]
    assert len(scored) == 6
    for context, continuation, (likelihood, is_greedy) in scored:
        per_token, likeliest = logprobs(tokens(context + continuation))
        own = slice(len(tokens(context)), None)
        assert likelihood == pytest.approx(sum(per_token[own]), abs=BATCH_NOISE)
        best = [max(top.values()) for top in likeliest[own]]
        assert is_greedy == (per_token[own] == best)
    for question, likelihood in facts["rolling"]:
        # lm-eval starts a document with the tokenizer's prefix token, id 1.
        assert likelihood == pytest.approx(sum(logprobs([1, *tokens(question)])[0][1:]), abs=BATCH_NOISE)


def test_lm_eval_gets_the_same_text_as_the_api(facts_of: FactsOf, http: httpx.Client, smollm2: Program) -> None:
    facts = facts_of("lm_eval")
    limits = {"temperature": 0, "max_tokens": 8, "stop": ["\n"]}
    body = {"model": smollm2.model, "prompt": "1, 2, 3, 4, 5, 6,", **limits}
    assert dict(facts["answers"])[body["prompt"]] == post(http, "/v1/completions", body)["choices"][0]["text"]
    (choice,) = chat(http, smollm2.model, **limits)["choices"]
    assert dict(facts["chat_answers"])[QUESTION] == choice["message"]["content"]
