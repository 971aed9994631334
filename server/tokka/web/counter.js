import { messagesOf, textOf } from "./conversation.js";
import { byId } from "./element.js";
import { Refusal } from "./server.js";

const PAUSE_MS = 250;

/** Shows the server's token counts of conversation and draft, and the rest of the context. */
export class Counter {
  #line = byId("count");
  #server;
  #models;
  #timer = 0;
  #running = new AbortController();
  // Tokens without the draft, for the last counted conversation and model.
  #base = { key: "", count: 0 };

  constructor(server, models) {
    this.#server = server;
    this.#models = models;
  }

  /** Count after a pause in typing. Abort the count in progress, which is out of date. */
  refresh(conversation, draft) {
    this.#drop();
    this.#running = new AbortController();
    const { signal } = this.#running;
    this.#timer = setTimeout(() => void this.#count(conversation, draft, signal), PAUSE_MS);
  }

  /** Show the server's count while it generates an answer. */
  follow({ total_tokens: count }) {
    const { length } = this.#models;
    if (!length) return;
    this.#drop();
    this.#show({ count, max_model_len: length }, 0);
  }

  /** Show nothing, because another tab is changing the conversation. */
  clear() {
    this.#drop();
    this.#line.textContent = "";
    this.#line.classList.remove("wrong");
  }

  #drop() {
    clearTimeout(this.#timer);
    this.#running.abort();
  }

  async #count(conversation, draft, signal) {
    if (!this.#models.chosen) return;
    try {
      const base = await this.#without(conversation, signal);
      const all = draft ? await this.#ask(conversation, draft, signal) : base;
      this.#show(all, draft ? Math.max(0, all.count - base.count) : 0);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refusal)) throw error;
      if (error.code === "no_chat_template") this.#models.noteBase(this.#models.chosen);
      this.#line.textContent = error.code === "context_length_exceeded" ? "Too long for the model's context" : "";
      this.#line.classList.toggle("wrong", error.code === "context_length_exceeded");
    }
  }

  async #without(conversation, signal) {
    const { chosen, isBase } = this.#models;
    const key = JSON.stringify([chosen, isBase, conversation.system, conversation.turns.map((turn) => turn.text)]);
    if (this.#base.key !== key) this.#base = { key, ...(await this.#ask(conversation, "", signal)) };
    return this.#base;
  }

  async #ask(conversation, draft, signal) {
    const model = this.#models.chosen;
    if (this.#models.isBase) {
      const prompt = textOf(conversation, draft);
      if (!prompt) return { count: 0, max_model_len: this.#models.length };
      return this.#server.count({ model, prompt }, signal);
    }
    const messages = messagesOf(conversation, draft);
    // Count an empty question, to get its minimum and to learn whether the model has a chat template.
    if (!messages.some((message) => message.role === "user")) messages.push({ role: "user", content: "" });
    return this.#server.count({ model, messages }, signal);
  }

  #show({ count, max_model_len: most }, draft) {
    const left = Math.max(0, most - count);
    const number = (value) => value.toLocaleString("en");
    const parts = [`${number(count)} of ${number(most)} tokens`, `${number(left)} left`];
    if (draft) parts.unshift(`Draft ${number(draft)}`);
    this.#line.textContent = parts.join(" · ");
    this.#line.classList.toggle("wrong", left === 0);
  }
}
