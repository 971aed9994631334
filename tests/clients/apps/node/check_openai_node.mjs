// The openai package of Node.js on the real engine. test_node.py tests it on the scripted engine.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const contacted = new Set();
const client = new OpenAI({
  baseURL: `${process.env.TOKKA_URL}/v1`,
  apiKey: "none",
  defaultHeaders: { "x-request-id": process.env.TOKKA_CHECK },
  maxRetries: 0,
  fetch: (url, options) => {
    contacted.add(new URL(url).hostname);
    return fetch(url, options);
  },
});
const model = process.env.TOKKA_MODEL;
const asked = (content) => [{ role: "user", content }];
const fields = { model, messages: asked(process.env.TOKKA_QUESTION), temperature: 0, max_completion_tokens: 24 };
const usage = ({ prompt_tokens: read, completion_tokens: written }) => [read, written];
const end = ({ choices: [choice] }) => [choice.message.content, choice.finish_reason];

const answer = await client.chat.completions.create(fields);
const pieces = [];
let streamUsage;
for await (const chunk of await client.chat.completions.create({
  ...fields,
  stream: true,
  stream_options: { include_usage: true },
})) {
  for (const choice of chunk.choices) if (choice.delta.content) pieces.push(choice.delta.content);
  if (chunk.usage) streamUsage = usage(chunk.usage);
}
const cut = await client.chat.completions.create({ ...fields, max_completion_tokens: 3 });
const stopped = await client.chat.completions.create({ ...fields, stop: process.env.TOKKA_STOP });
const text = { model, prompt: "1, 2, 3, 4, 5, 6,", max_tokens: 5, temperature: 0 };
const continued = await client.completions.create(text);
const Person = z.strictObject({
  name: z.string().max(40),
  age: z.number().int().min(0).max(150),
  mood: z.enum(["calm", "cheerful", "tired"]),
});
const person = await client.chat.completions.parse({
  ...fields,
  messages: asked(process.env.TOKKA_PERSON),
  max_completion_tokens: 100,
  response_format: zodResponseFormat(Person, "person"),
});

// A required tool call, plain and streamed, and the answer to the tool's result.
const parameters = z.toJSONSchema(z.strictObject({ city: z.enum(["Oulu", "Turku"]) }));
const calling = {
  ...fields,
  messages: asked(process.env.TOKKA_ASK),
  max_completion_tokens: 100,
  tools: [{ type: "function", function: { name: "get_weather", description: "Weather in a city.", parameters } }],
};
const call = ({ function: { name, arguments: text } }) => [name, JSON.parse(text)];
const called = (await client.chat.completions.create({ ...calling, tool_choice: "required" })).choices[0].message;
const streamed = await client.chat.completions.stream({ ...calling, tool_choice: "required" }).finalChatCompletion();
const after = await client.chat.completions.create({
  ...calling,
  messages: [
    ...calling.messages,
    called,
    ...called.tool_calls.map(({ id }) => ({ role: "tool", tool_call_id: id, content: "Snow in Oulu." })),
  ],
});

let error;
try {
  await client.chat.completions.create({ ...fields, model: process.env.TOKKA_NO_MODEL });
} catch (caught) {
  error = [caught instanceof OpenAI.NotFoundError ? "NotFoundError" : caught.name, caught.message];
}

console.log(
  JSON.stringify({
    answer: answer.choices[0].message.content,
    pieces,
    usage: usage(answer.usage),
    stream_usage: streamUsage,
    cut: end(cut),
    stopped: end(stopped),
    continued: continued.choices[0].text,
    person: person.choices[0].message.parsed,
    error,
    call: call(called.tool_calls[0]),
    streamed_call: call(streamed.choices[0].message.tool_calls[0]),
    after: after.choices[0].message.content,
    contacted: [...contacted],
  }),
);
