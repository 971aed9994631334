"""langchain-openai with `use_responses_api=True`."""

from __future__ import annotations

import openai
from facts import API, MODEL, NO_MODEL, PERSON, QUESTION, error_of, report
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from person import Person
from weather import ASK, TOOL

common = {"base_url": API, "api_key": "none", "max_retries": 0, "use_responses_api": True}
chat = ChatOpenAI(model=MODEL, **common)

answer = chat.invoke(QUESTION)
chunks = list(chat.stream(QUESTION))
whole = chunks[0]
for chunk in chunks[1:]:
    whole += chunk
cut = chat.invoke(QUESTION, max_output_tokens=3)
person = chat.with_structured_output(Person).invoke(PERSON)
with_tools = chat.bind_tools([TOOL])
called = with_tools.invoke(ASK)
(call,) = called.tool_calls
parts = list(with_tools.stream(ASK))
joined = parts[0]
for part in parts[1:]:
    joined += part
(streamed,) = joined.tool_calls
turns = [HumanMessage(ASK), called, ToolMessage("Snow in Oulu.", tool_call_id=call["id"])]
after = with_tools.invoke(turns)
second = chat.invoke("And tomorrow?", previous_response_id=answer.response_metadata["id"])
try:
    ChatOpenAI(model=NO_MODEL, **common).invoke(QUESTION)
except openai.NotFoundError as caught:
    error = error_of(caught)


def usage(message: AIMessage) -> list[int]:
    return [message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]]


report(
    texts=[answer.text, whole.text, after.text, second.text],
    usage=usage(answer),
    stream_usage=usage(whole),
    second_input=usage(second)[0],
    cut=[cut.text, cut.response_metadata["status"]],
    person=person.model_dump(),
    call=[call["name"], call["args"]],
    streamed_call=[streamed["name"], streamed["args"]],
    error=error,
)
