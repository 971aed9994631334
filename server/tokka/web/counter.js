import { messagesOf, textOf } from "./conversation.js";
import { byId } from "./element.js";
import { Refusal } from "./server.js";

const PAUSE_MS = 250;

/** Counts, as the server would, the tokens of conversation and draft, and shows what is left of the context. */
export class Counter {
  #line = byId("count");
  #server;
  #models;
  #timer = 0;
  #running = new AbortController();
  // Tokens without a draft, for each state of conversation and model that was counted last.
  #base = { key: "", count: 0 };

  constructor(server, models) {
    this.#server = server;
    this.#models = models;
  }

  /** Count when there is a pause; what is counted now is out of date. */
  refresh(conversation, draft) {
    this.#drop();
    this.#running = new AbortController();
    const { signal } = this.#running;
    this.#timer = setTimeout(() => void this.#count(conversation, draft, signal), PAUSE_MS);
  }

  /** Show what the server counted while it writes an answer. */
  follow({ total_tokens: count }) {
    const { length } = this.#models;
    if (!length) return;
    this.#drop();
    this.#show({ count, max_model_len: length }, 0);
  }

  /** Show nothing: what there is to count changes elsewhere. */
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
    // What a first question would cost at least, and whether the model takes one at all.
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
