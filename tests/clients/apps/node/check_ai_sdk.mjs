// The Vercel AI SDK with its provider for OpenAI-compatible servers.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const contacted = new Set();
const provider = createOpenAICompatible({
  name: "tokka",
  baseURL: `${process.env.TOKKA_URL}/v1`,
  apiKey: "none",
  headers: { "x-request-id": process.env.TOKKA_CHECK },
  includeUsage: true,
  supportsStructuredOutputs: true,
  fetch: (url, options) => {
    contacted.add(new URL(url).hostname);
    return fetch(url, options);
  },
});
const model = provider(process.env.TOKKA_MODEL);
const fields = { model, prompt: process.env.TOKKA_QUESTION, temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const usage = ({ inputTokens, outputTokens }) => [inputTokens, outputTokens];

const answer = await generateText(fields);
const stream = streamText(fields);
const pieces = [];
for await (const piece of stream.textStream) pieces.push(piece);
const cut = await generateText({ ...fields, maxOutputTokens: 3 });
const stopped = await generateText({ ...fields, stopSequences: [process.env.TOKKA_STOP] });
const person = await generateText({
  ...fields,
  prompt: process.env.TOKKA_PERSON,
  maxOutputTokens: 100,
  output: Output.object({
    schema: z.strictObject({
      name: z.string().max(40),
      age: z.number().int().min(0).max(150),
      mood: z.enum(["calm", "cheerful", "tired"]),
    }),
  }),
});

// One step with a required tool call, and one with the tool's result.
const ran = [];
const weather = tool({
  description: "Return the weather in a city.",
  inputSchema: z.strictObject({ city: z.enum(["Oulu", "Turku"]) }),
  execute: ({ city }) => {
    ran.push(city);
    return `Snow in ${city}.`;
  },
});
const rounds = await generateText({
  ...fields,
  prompt: process.env.TOKKA_ASK,
  maxOutputTokens: 100,
  tools: { get_weather: weather },
  prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "auto" }),
  stopWhen: stepCountIs(2),
});

let error;
try {
  await generateText({ ...fields, model: provider(process.env.TOKKA_NO_MODEL) });
} catch (caught) {
  error = [APICallError.isInstance(caught) ? "APICallError" : caught.name, caught.message];
}

console.log(
  JSON.stringify({
    answer: answer.text,
    pieces,
    usage: usage(answer.usage),
    stream_usage: usage(await stream.usage),
    cut: [cut.text, cut.finishReason],
    stopped: [stopped.text, stopped.finishReason],
    person: person.output,
    error,
    call: ["get_weather", { city: ran[0] }],
    after: rounds.steps.at(-1).text,
    contacted: [...contacted],
  }),
);
