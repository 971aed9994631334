// The AI SDK with @ai-sdk/anthropic on the scripted engine: prints one JSON object of facts.
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = createAnthropic({ baseURL: `${process.env.TOKKA_URL}/v1`, apiKey: "none" });
const asked = { model: provider(process.env.TOKKA_MODEL), prompt: "Hello", maxOutputTokens: 1000, maxRetries: 0 };

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
const { object } = await generateObject({ ...asked, schema: z.object({ people: z.number().int() }) });
let error;
try {
  await generateText({ ...asked, model: provider("no-such-model") });
} catch (caught) {
  error = [caught.name, caught.statusCode, caught.message];
}
console.log(
  JSON.stringify({
    texts: [plain.text, streamed, loop.text],
    reasoning: plain.reasoningText,
    ran,
    steps: loop.steps.length,
    object,
    error,
  }),
);
