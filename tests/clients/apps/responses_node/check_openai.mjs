// The openai package's Responses API on the scripted engine: prints one JSON object of facts.
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = process.env.TOKKA_MODEL;
const client = new OpenAI({ baseURL: `${process.env.TOKKA_URL}/v1`, apiKey: "none", maxRetries: 0 });
const asked = { model, input: "Hello" };
const tools = [
  {
    type: "function",
    name: "now",
    strict: true,
    parameters: {
      type: "object",
      properties: { zone: { type: "string", enum: ["UTC"] } },
      required: ["zone"],
      additionalProperties: false,
    },
  },
];

const plain = await client.responses.create(asked);
const pieces = [];
const stream = client.responses.stream(asked);
stream.on("response.output_text.delta", ({ delta }) => pieces.push(delta));
const streamed = await stream.finalResponse();
const called = await client.responses.create({ ...asked, tools });
const call = called.output.find((item) => item.type === "function_call");
const result = { type: "function_call_output", call_id: call.call_id, output: "Noon" };
const after = await client.responses.create({ model, tools, input: [result], previous_response_id: called.id });
const parsed = await client.responses.parse({
  ...asked,
  text: { format: zodTextFormat(z.strictObject({ people: z.number().int() }), "town") },
});
const read = await client.responses.retrieve(plain.id);
const items = [];
for await (const item of client.responses.inputItems.list(after.id)) items.push(item.type);
await client.responses.delete(plain.id);
const errors = [];
for (const bad of [{ ...asked, model: "no-such-model" }, { ...asked, temperature: 3 }]) {
  try {
    await client.responses.create(bad);
  } catch (caught) {
    errors.push([caught.constructor.name, caught.status, caught.param]);
  }
}

console.log(
  JSON.stringify({
    texts: [plain.output_text, pieces.join(""), streamed.output_text, after.output_text, read.output_text],
    usage: [plain.usage, streamed.usage],
    call: [call.name, JSON.parse(call.arguments)],
    object: parsed.output_parsed,
    items,
    errors,
  }),
);
