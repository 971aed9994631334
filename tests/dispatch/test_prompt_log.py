"""Prompts in the log: as plain data, without the data of images."""

from __future__ import annotations

from tokka.core import ChatPrompt, Image, RequestRecord, TextPrompt
from tokka.dispatch.prompt_log import prompt_fields, shown_prompts

URL = "data:image/png;base64,AAAA"


def test_images_are_shown_by_their_places() -> None:
    messages = ({"role": "user", "content": "Hei"},)
    (chat,) = shown_prompts([ChatPrompt(messages, images=(Image(URL, "input[0].content[1]"),))])
    assert chat["messages"] == messages
    assert chat["images"] == ["input[0].content[1]"]
    assert URL not in str(chat)


def test_prompts_are_shown_as_plain_data() -> None:
    chat, text = shown_prompts([ChatPrompt(({"role": "user", "content": "Hei"},)), TextPrompt("Moi")])
    assert (chat["images"], text) == ((), {"text": "Moi", "add_special_tokens": None, "param": ""})


def test_log_line_has_prompts_only_if_they_were_noted() -> None:
    record = RequestRecord(id="req_1", arrived_s=0)
    assert prompt_fields(record) == {}
    record.prompt = shown_prompts([TextPrompt("Moi")])
    assert prompt_fields(record)["prompt"][0]["text"] == "Moi"
