// @anthropic-ai/sdk on the scripted engine: prints one JSON object of facts.
import Anthropic from "@anthropic-ai/sdk";

const model = process.env.TOKKA_MODEL;
const client = new Anthropic({ baseURL: process.env.TOKKA_URL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const inputSchema = { type: "object", properties: { zone: { enum: ["UTC"] } }, required: ["zone"] };
const tools = [{ name: "now", input_schema: inputSchema }];
const asked = { model, max_tokens: 1000, messages };

const plain = await client.messages.create(asked);
const streamed = await client.messages.stream(asked).finalMessage();
const called = await client.messages.stream({ ...asked, tools }).finalMessage();
const use = called.content.find((block) => block.type === "tool_use");
const result = { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "Noon" }] };
const turns = [...messages, { role: "assistant", content: called.content }, result];
const ended = await client.messages.create({ ...asked, tools, messages: turns });
const counted = await client.messages.countTokens({ model, messages });
const models = [];
for await (const one of client.models.list()) models.push(one.id);
let error;
try {
  await client.messages.create({ ...asked, model: "no-such-model" });
} catch (caught) {
  error = [caught.constructor.name, caught.status, Boolean(caught.requestID)];
}

const textOf = (message) => message.content.filter((block) => block.type === "text").map((block) => block.text).join("");
console.log(
  JSON.stringify({
    texts: [textOf(plain), textOf(streamed), textOf(ended)],
    usage: [plain.usage, streamed.usage],
    call: [use.name, use.input, called.stop_reason],
    tokens: counted.input_tokens,
    models,
    error,
  }),
);
