// The AI SDK with @ai-sdk/openai, which speaks the Responses API by default: prints one JSON object of facts.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = createOpenAI({ baseURL: `${process.env.TOKKA_URL}/v1`, apiKey: "none" });
const asked = { model: provider(process.env.TOKKA_MODEL), prompt: "Hello", maxRetries: 0 };
const usage = ({ inputTokens, outputTokens }) => [inputTokens, outputTokens];

const plain = await generateText(asked);
const stream = streamText(asked);
let streamed = "";
for await (const piece of stream.textStream) streamed += piece;
const ran = [];
const now = tool({
  description: "The time.",
  inputSchema: z.object({ zone: z.enum(["UTC"]) }),
  execute: async ({ zone }) => {
    ran.push(zone);
    return "Noon";
  },
});
const loop = await generateText({ ...asked, tools: { now }, stopWhen: stepCountIs(3) });
const streamedLoop = streamText({ ...asked, tools: { now }, stopWhen: stepCountIs(3) });
const streamedAfter = await streamedLoop.text;
const form = Output.object({ schema: z.object({ people: z.number().int() }) });
const { output } = await generateText({ ...asked, output: form });
const errors = [];
for (const bad of [{ model: provider("no-such-model") }, { temperature: 3 }]) {
  try {
    await generateText({ ...asked, ...bad });
  } catch (caught) {
    errors.push([caught.name, caught.statusCode, caught.message]);
  }
}

console.log(
  JSON.stringify({
    texts: [plain.text, streamed, loop.text, streamedAfter],
    usage: [usage(plain.usage), usage(await stream.usage)],
    ran,
    steps: loop.steps.length,
    object: output,
    errors,
  }),
);
