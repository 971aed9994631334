// Show the three ways an answer ends: the model, a stop string, or the length limit. finish_reason and stop_reason say which.
import OpenAI from "openai";

const url = process.env.TOKKA_URL ?? "http://127.0.0.1:8000";
const apiKey = process.env.TOKKA_API_KEY ?? "none";

async function main() {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey });
  const model = (await client.models.list()).data[0].id;

  async function ask(title, fields) {
    const answer = await client.chat.completions.create({
      model,
      messages: [{ role: "user", content: "Tell me about Helsinki in three sentences." }],
      temperature: 0,
      ...fields,
    });
    const [choice] = answer.choices;
    console.log(`\n${title}`);
    console.log("  answer:", JSON.stringify(choice.message.content));
    // stop_reason is a Tokka extension: the stop string or token id that matched.
    console.log(`  finish_reason: ${choice.finish_reason}, stop_reason: ${choice.stop_reason}`);
    console.log(`  tokens written: ${answer.usage.completion_tokens}`);
  }

  await ask("1. max_completion_tokens: 10. The answer is cut off (finish_reason length).", {
    max_completion_tokens: 10,
  });
  await ask("2. max_completion_tokens: 300. Room enough, the model ends by itself (finish_reason stop).", {
    max_completion_tokens: 300,
  });
  await ask('3. stop: ["."]. Ends at the first full stop, which is left out.', {
    max_completion_tokens: 300,
    stop: ["."],
  });
  // Send Tokka's own fields like any other.
  await ask("4. include_stop_str_in_output. The same, with the full stop.", {
    max_completion_tokens: 300,
    stop: ["."],
    include_stop_str_in_output: true,
  });
}

try {
  await main();
} catch (error) {
  if (!(error instanceof OpenAI.OpenAIError)) throw error;
  console.error(`${error.constructor.name}: ${error.message}`);
  process.exitCode = 1;
}
