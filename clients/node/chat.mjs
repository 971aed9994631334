// Ask one question and print the answer.
import OpenAI from "openai";

const url = process.env.TOKKA_URL ?? "http://127.0.0.1:8000";
const apiKey = process.env.TOKKA_API_KEY ?? "none";
const question = "What is the capital of France?";

async function main() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey });
  const model = (await client.models.list()).data[0].id;
  const answer = await client.chat.completions.create({
    model,
    messages: [{ role: "user", content: question }],
    max_completion_tokens: 200,
    temperature: 0,
  });
  const [choice] = answer.choices;
  console.log("Question:", question);
  console.log("Answer:", choice.message.content);
  console.log("finish_reason:", choice.finish_reason);
  console.log(`${model} read ${answer.usage.prompt_tokens} tokens and wrote ${answer.usage.completion_tokens}.`);
}

try {
  await main();
} catch (error) {
  if (!(error instanceof OpenAI.OpenAIError)) throw error;
  console.error(`${error.constructor.name}: ${error.message}`);
  process.exitCode = 1;
}
