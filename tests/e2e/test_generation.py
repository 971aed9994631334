"""Chat and text completion on the real engine: limits, stops, token counts and logprobs, streamed and plain."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.program import Program
from tests.wire import endings, forced, post, stream, text_of
from tokka.protocol.response_models import ChatCompletion, ChatCompletionChunk, Completion

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def client(smollm2: Program) -> Iterator[httpx.Client]:
    with smollm2.client() as client:
        yield client


def chat(content: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "SmolLM2-135M-Instruct", "messages": messages, "temperature": 0, **fields}


def completion(prompt: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "SmolLM2-135M-Instruct", "prompt": prompt, "temperature": 0, **fields}


def test_answer_makes_sense(client: httpx.Client) -> None:
    answer = post(client, CHAT, chat("What is the capital of Finland?"))
    assert "Finland" in answer["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] is None


@pytest.mark.parametrize("limit", [1, 2, 7, 33])
def test_length_limit_is_exact(client: httpx.Client, limit: int) -> None:
    answer = post(client, CHAT, chat("Tell me a long story.", max_completion_tokens=limit))
    assert answer["usage"]["completion_tokens"] == limit
    assert answer["choices"][0]["finish_reason"] == "length"


def test_max_completion_tokens_wins_over_max_tokens(client: httpx.Client) -> None:
    answer = post(client, CHAT, chat("Tell me a long story.", max_completion_tokens=3, max_tokens=9))
    assert answer["usage"]["completion_tokens"] == 3


def test_completion_without_a_limit_gets_16_tokens(client: httpx.Client) -> None:
    answer = post(client, TEXT, completion("Once upon a time"))
    assert answer["usage"]["completion_tokens"] == 16
    assert answer["choices"][0]["finish_reason"] == "length"


STORY = "The reindeer lives in the north; it eats lichen, moss and grass, and it sees in the dark. 🦌"


def told(**fields: Any) -> dict[str, Any]:
    """Return a request that forces the story as its completion text; the fields may cut it."""
    return completion("Tell me of an animal:", max_tokens=100, **forced(STORY), **fields)


@pytest.mark.parametrize("stop", ["h", "deer", "lives in the", ";", " lichen, moss and grass", "k. 🦌"])
def test_stop_string_cuts_the_text_where_it_begins(client: httpx.Client, stop: str) -> None:
    expected = STORY[: STORY.index(stop)]
    plain = post(client, TEXT, told(stop=[stop]))["choices"][0]
    chunks = stream(client, TEXT, told(stop=[stop]))
    assert plain["text"] == expected
    assert (plain["finish_reason"], plain["stop_reason"]) == ("stop", stop)
    assert text_of(chunks) == expected
    assert endings(chunks) == [(0, "stop", stop)]


def test_stop_string_is_returned_when_asked_for(client: httpx.Client) -> None:
    body = told(stop="in the", include_stop_str_in_output=True)
    assert post(client, TEXT, body)["choices"][0]["text"] == "The reindeer lives in the"
    assert text_of(stream(client, TEXT, body)) == "The reindeer lives in the"


def test_of_several_stops_the_first_in_the_text_counts(client: httpx.Client) -> None:
    answer = post(client, TEXT, told(stop=["grass", "eats", "never to be seen"]))["choices"][0]
    assert (answer["text"], answer["stop_reason"]) == ("The reindeer lives in the north; it ", "eats")


def test_a_stop_counts_only_after_min_tokens(client: httpx.Client) -> None:
    body = completion("The reindeer is an animal that", max_tokens=60, stop=[" "], min_tokens=20, return_token_ids=True)
    answer = post(client, TEXT, body)
    (choice,) = answer["choices"]
    assert answer["usage"]["completion_tokens"] > 20
    free = post(client, "/detokenize", {"tokens": choice["token_ids"][:20]})["prompt"]
    assert " " in free
    assert " " not in choice["text"][len(free) :]


def test_stop_token_ends_the_text_and_is_named(client: httpx.Client) -> None:
    # The frequency penalty on `other` grows with each repetition until the engine chooses `stop`.
    other, stop = 1000, 2000
    fields = {"allowed_token_ids": [other, stop], "frequency_penalty": 2, "return_token_ids": True}
    body = completion("A", max_tokens=60, stop_token_ids=[stop], stop=["unseen"], **fields)
    (choice,) = post(client, TEXT, body)["choices"]
    assert choice["token_ids"] == [other] * (len(choice["token_ids"]) - 1) + [stop]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert choice["text"] == post(client, "/detokenize", {"tokens": choice["token_ids"][:-1]})["prompt"]


def test_ignore_eos_goes_on_to_the_limit(client: httpx.Client) -> None:
    answer = post(client, CHAT, chat("Say hi.", max_completion_tokens=120, ignore_eos=True))
    assert answer["usage"]["completion_tokens"] == 120
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("🦌 ä ö 日本語 🇫🇮", {}),
        ("Päivää, hyvää yötä! 🦌🦌", {"stop": ["yö", "🦌🦌🦌"]}),
        ("One, two, three.", {"n": 2}),
        ("Red.", {"n": 3, "temperature": 1.2, "seed": 5}),
    ],
    ids=["characters over tokens", "stops beside characters", "greedy choices", "sampled choices"],
)
def test_stream_adds_up_to_the_plain_answer(client: httpx.Client, text: str, fields: dict[str, Any]) -> None:
    body = chat("Hi", max_completion_tokens=60, **forced(text), **fields)
    plain = post(client, CHAT, body)
    chunks = stream(client, CHAT, {**body, "stream_options": {"include_usage": True}})
    assert [choice["index"] for choice in plain["choices"]] == list(range(fields.get("n", 1)))
    for choice in plain["choices"]:
        assert choice["message"]["content"] == text.partition("yö")[0]
        assert text_of(chunks, choice["index"]) == choice["message"]["content"]
    ended = sorted(endings(chunks))
    assert ended == [(c["index"], c["finish_reason"], c["stop_reason"]) for c in plain["choices"]]
    streamed, direct = chunks[-1]["usage"], plain["usage"]
    assert streamed["prompt_tokens"] == direct["prompt_tokens"]
    assert min(streamed["completion_tokens"], direct["completion_tokens"]) > 0


@pytest.mark.parametrize(
    "fields", [{"max_completion_tokens": 40}, {"n": 3, "temperature": 1.2, "max_completion_tokens": 12}], ids=str
)
def test_stream_usage_counts_the_sent_tokens(client: httpx.Client, fields: dict[str, Any]) -> None:
    body = chat("Write only these: 🦌 ä ö 日本語", return_token_ids=True, ignore_eos=True, **fields)
    # An ignored end token may be among the tokens; /detokenize shows it too.
    body["skip_special_tokens"] = False
    chunks = stream(client, CHAT, {**body, "stream_options": {"include_usage": True}})
    for index in range(fields.get("n", 1)):
        parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        tokens = [token for part in parts for token in part.get("token_ids", ())]
        assert len(tokens) == fields["max_completion_tokens"]
        shown = post(client, "/detokenize", {"tokens": tokens})["prompt"]
        # An incomplete character yields no text.
        assert text_of(chunks, index) == shown.rstrip("\ufffd")
    assert chunks[-1]["usage"]["completion_tokens"] == fields.get("n", 1) * fields["max_completion_tokens"]


def test_answers_and_chunks_have_the_documented_shape(client: httpx.Client) -> None:
    body = chat("Say hi.", max_completion_tokens=5, logprobs=True, top_logprobs=2, return_token_ids=True)
    ChatCompletion.model_validate(post(client, CHAT, body))
    for chunk in stream(client, CHAT, body):
        ChatCompletionChunk.model_validate(chunk)
    scored = completion("Hi", max_tokens=4, logprobs=2, echo=True, return_token_ids=True)
    Completion.model_validate(post(client, TEXT, scored))
    for chunk in stream(client, TEXT, scored):
        Completion.model_validate(chunk)


def test_each_of_several_choices_is_answered(client: httpx.Client) -> None:
    answer = post(client, CHAT, chat("Name a city.", n=3, max_completion_tokens=8, ignore_eos=True))
    assert [bool(choice["message"]["content"]) for choice in answer["choices"]] == [True] * 3
    assert answer["usage"]["completion_tokens"] == 24


def test_seed_of_a_prompt_that_takes_several_steps_is_served(client: httpx.Client) -> None:
    # A step computes at most 512 tokens, so this prompt takes several.
    body = completion("word " * 1500, temperature=1.0, seed=1, max_tokens=8, ignore_eos=True)
    first = post(client, TEXT, body)["choices"][0]["text"]
    assert first
    assert post(client, TEXT, {**body, "prompt": "Word " + "word " * 1499, "n": 2})["choices"]


def test_seed_repeats_a_sampled_answer(client: httpx.Client) -> None:
    def poem(seed: int, n: int = 1) -> list[str]:
        # A single choice is alone in its batch, even on a busy machine. Only then is the engine deterministic.
        body = chat("Write a poem.", temperature=1.0, max_completion_tokens=24, seed=seed, n=n)
        return [choice["message"]["content"] for choice in post(client, CHAT, body)["choices"]]

    assert poem(7) == poem(7)
    assert poem(7) != poem(8)
    assert poem(-1) == poem(-1)
    assert poem(2**63 - 1)
    one, other = poem(7, n=2)
    assert one != other


def test_logprobs_cover_the_text_exactly(client: httpx.Client) -> None:
    body = chat("Write: 🦌 Hyvää!", max_completion_tokens=10, logprobs=True, top_logprobs=3)
    choice = post(client, CHAT, body)["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert len(tokens) == 10
    joined = b"".join(bytes(token["bytes"]) for token in tokens)
    assert joined.decode(errors="ignore") == choice["message"]["content"]
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)
    # Greedy decoding: no token is likelier than the chosen one.
    assert all(token["top_logprobs"][0]["logprob"] == token["logprob"] for token in tokens)
    chunks = stream(client, CHAT, body)
    parts = [part for chunk in chunks for part in chunk["choices"]]
    streamed = [token for part in parts for token in (part["logprobs"] or {}).get("content", [])]
    assert len(streamed) == 10
    joined = b"".join(bytes(token["bytes"]) for token in streamed)
    assert joined.decode(errors="ignore") == text_of(chunks)


def test_logprobs_end_where_the_text_ends(client: httpx.Client) -> None:
    answer = post(client, CHAT, chat("What is the capital of Finland?", logprobs=True))["choices"][0]
    assert answer["finish_reason"] == "stop"
    joined = "".join(token["token"] for token in answer["logprobs"]["content"])
    assert joined == answer["message"]["content"]


def test_prompt_is_scored_without_generating(client: httpx.Client) -> None:
    """Evaluation harnesses send this request to get the log-likelihood of a text."""
    body = completion(["Helsinki is the capital of Finland", "Paris"], max_tokens=0, echo=True, logprobs=1)
    answer = post(client, TEXT, body)
    assert answer["usage"]["completion_tokens"] == 0
    first, second = answer["choices"]
    assert (first["text"], second["text"]) == ("Helsinki is the capital of Finland", "Paris")
    scores = first["logprobs"]
    assert "".join(scores["tokens"]) == first["text"]
    assert scores["token_logprobs"][0] is None
    assert all(score < 0 for score in scores["token_logprobs"][1:])
    assert [
        first["text"][at:][: len(token)] for at, token in zip(scores["text_offset"], scores["tokens"], strict=True)
    ] == (scores["tokens"])
    assert text_of(stream(client, TEXT, body)) == first["text"]


def test_echo_comes_before_the_completion_with_and_without_logprobs(client: httpx.Client) -> None:
    body = completion("Helsinki is", max_tokens=9, **forced(" the capital."))
    plain, echoed, scored = (
        post(client, TEXT, {**body, **fields})["choices"][0]
        for fields in ({}, {"echo": True}, {"echo": True, "logprobs": 0})
    )
    assert plain["text"] == " the capital."
    assert echoed["text"] == scored["text"] == "Helsinki is the capital."
    assert "".join(scored["logprobs"]["tokens"]) == scored["text"]


def test_prompt_forms_are_the_same_prompt(client: httpx.Client) -> None:
    tokens = post(client, "/tokenize", {"prompt": "Helsinki is"})["tokens"]
    for form in ("Helsinki is", ["Helsinki is"], tokens, [tokens]):
        answer = post(client, TEXT, completion(form, max_tokens=1, return_token_ids=True))
        assert answer["choices"][0]["prompt_token_ids"] == tokens
        assert answer["usage"]["prompt_tokens"] == len(tokens)


def test_many_prompts_keep_their_order(client: httpx.Client) -> None:
    prompts = ["One, two,", "Red, green,", "Monday, Tuesday,"]
    together = post(client, TEXT, completion(prompts, max_tokens=6, n=2, echo=True))
    assert [choice["index"] for choice in together["choices"]] == list(range(6))
    for at, prompt in enumerate(prompts):
        for choice in together["choices"][2 * at : 2 * at + 2]:
            assert choice["text"].startswith(prompt)
            assert len(choice["text"]) > len(prompt)


def test_best_of_returns_one_and_counts_all(client: httpx.Client) -> None:
    body = completion("The best word is", max_tokens=6, temperature=1.5, seed=3, best_of=4, ignore_eos=True)
    answer = post(client, TEXT, body)
    (choice,) = answer["choices"]
    assert choice["text"]
    assert choice["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 24


def test_context_refusal_names_limit_prompt_and_requested_tokens(client: httpx.Client) -> None:
    for streamed in (False, True):
        answer = client.post(CHAT, json=chat("Hi", max_completion_tokens=8190, stream=streamed))
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded"
        prompt_tokens = post(client, "/tokenize", {"messages": [{"role": "user", "content": "Hi"}]})["count"]
        for number in (8192, prompt_tokens, 8190):
            assert str(number) in error["message"]


def test_no_prompt_is_the_beginning_of_a_document(client: httpx.Client) -> None:
    for prompt in (None, ""):
        answer = post(client, TEXT, completion(prompt, max_tokens=3, ignore_eos=True))
        assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (1, 3)


def test_text_beyond_the_context_can_still_be_counted(client: httpx.Client) -> None:
    assert post(client, "/tokenize", {"prompt": "word " * 200_000})["count"] > 200_000


def test_prompt_longer_than_the_context_is_refused(client: httpx.Client) -> None:
    answer = client.post(TEXT, json=completion("reindeer " * 20000))
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    huge = client.post(TEXT, json=completion("x" * 1_000_000))
    assert huge.json()["error"]["code"] == "context_length_exceeded"
    # More bytes than any prompt of this model can have.
    assert client.post(TEXT, json=completion("x" * 5_000_000)).status_code == 413


def test_prompt_can_be_cut_to_its_end(client: httpx.Client) -> None:
    answer = post(client, TEXT, completion("one two three four five six", truncate_prompt_tokens=2, echo=True))
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["choices"][0]["text"].startswith(" five six")


def test_timeout_returns_the_answer_so_far(client: httpx.Client) -> None:
    body = chat("Tell a long story.", max_completion_tokens=4000, ignore_eos=True, timeout=3.0)
    for answer in (post(client, CHAT, body)["choices"][0], stream(client, CHAT, body)[-1]["choices"][0]):
        assert (answer["finish_reason"], answer["stop_reason"]) == ("length", "timeout")


def test_last_message_can_be_continued(client: httpx.Client) -> None:
    messages = [
        {"role": "user", "content": "What is the capital of Finland?"},
        {"role": "assistant", "content": "The capital is Hel"},
    ]
    body = {"model": "SmolLM2-135M-Instruct", "messages": messages, "continue_final_message": True, **forced("sinki.")}
    tokens = post(client, "/tokenize", {"messages": messages, "continue_final_message": True})["tokens"]
    assert post(client, "/detokenize", {"tokens": tokens})["prompt"].endswith("assistant\nThe capital is Hel")
    answers = [post(client, CHAT, {**body, "echo": echo})["choices"][0]["message"]["content"] for echo in (False, True)]
    assert answers == ["sinki.", "The capital is Helsinki."]


def test_roles_and_text_parts_are_rendered(client: httpx.Client) -> None:
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    tokens = [post(client, "/tokenize", {"messages": messages})["tokens"] for messages in (plain, parts)]
    assert tokens[0] == tokens[1]
    assert "Be brief." in post(client, "/detokenize", {"tokens": tokens[0]})["prompt"]


def test_usage_reports_cached_prompt_tokens(client: httpx.Client) -> None:
    body = completion([200 + at % 900 for at in range(600)], max_tokens=1)
    post(client, TEXT, body)
    assert post(client, TEXT, body)["usage"]["prompt_tokens_details"]["cached_tokens"] >= 512


def test_logit_bias_and_allowed_tokens_decide(client: httpx.Client) -> None:
    forced = post(client, TEXT, completion("Hi", max_tokens=4, logit_bias={"1000": 100}, return_token_ids=True))
    assert forced["choices"][0]["token_ids"] == [1000] * 4
    allowed = post(client, TEXT, completion("Hi", max_tokens=4, allowed_token_ids=[2000], return_token_ids=True))
    assert allowed["choices"][0]["token_ids"] == [2000] * 4


def test_every_sampling_field_is_taken_at_once(client: httpx.Client) -> None:
    fields = {
        "temperature": 0.9, "top_p": 0.9, "top_k": 30, "min_p": 0.01, "presence_penalty": 0.5, "frequency_penalty": 0.5,
        "repetition_penalty": 1.1, "seed": 1, "bad_words": ["reindeer"], "min_tokens": 2, "stop": ["zzzz"],
        "stop_token_ids": [7], "logit_bias": {"5": -1.5}, "priority": 3, "cache_salt": "s1", "user": "u",
        "skip_special_tokens": False, "metadata": {"a": "b"}, "store": False, "service_tier": "auto",
    }  # fmt: skip
    answer = post(client, CHAT, chat("Hello", max_completion_tokens=8, **fields))
    assert 2 <= answer["usage"]["completion_tokens"] <= 8


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"stop_token_ids": [60000]}, "stop_token_ids"),
        ({"allowed_token_ids": [60000]}, "allowed_token_ids"),
        ({"min_tokens": 20, "max_completion_tokens": 10}, "min_tokens"),
    ],
)
def test_token_ids_outside_the_vocabulary_are_refused(client: httpx.Client, fields: dict[str, Any], param: str) -> None:
    answer = client.post(CHAT, json=chat("Hi", **fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
