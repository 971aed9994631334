// Stream an answer and print its usage at the end.
import OpenAI from "openai";

const url = process.env.TOKKA_URL ?? "http://127.0.0.1:8000";
const apiKey = process.env.TOKKA_API_KEY ?? "none";

async function main() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey });
  const model = (await client.models.list()).data[0].id;
  const stream = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: "Tell me about Helsinki in three sentences." }],
    max_completion_tokens: 300,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  });
  let pieces = 0;
  let finishReason = null;
  let usage = null;
  for await (const chunk of stream) {
    // The last chunk has the usage and no choices.
    usage = chunk.usage ?? usage;
    for (const choice of chunk.choices) {
      finishReason = choice.finish_reason ?? finishReason;
      if (choice.delta.content) {
        pieces += 1;
        process.stdout.write(choice.delta.content);
      }
    }
  }
  console.log();
  if (!finishReason || !usage) {
    console.error("The stream broke off; the answer is not complete.");
    process.exitCode = 1;
    return;
  }
  console.log("finish_reason:", finishReason);
  console.log(`${pieces} pieces`);
  console.log(`${usage.prompt_tokens} tokens read + ${usage.completion_tokens} written = ${usage.total_tokens}`);
}

try {
  await main();
} catch (error) {
  if (!(error instanceof OpenAI.OpenAIError)) throw error;
  console.error(`${error.constructor.name}: ${error.message}`);
  process.exitCode = 1;
}
