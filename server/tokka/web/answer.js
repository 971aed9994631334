import { messagesOf, textOf } from "./conversation.js";
import { Refusal } from "./server.js";

// Maximum tries against a busy or unreachable server. After that the reader decides.
const MAX_TRIES = 5;
const TICK_MS = 250;
// Seconds for which the server may hold a request until its model has started.
const WAIT_S = 120;

/**
 * Generates an answer into the last turn of a conversation.
 *
 * It waits for a starting engine or a busy server, asks for a key, and uses text completion for a base model. The turn
 * always has an ending afterwards.
 */
export class Answer {
  #parts;

  /** @param {Record<"server" | "startup" | "key" | "models" | "connection" | "settings", object>} parts */
  constructor(parts) {
    this.#parts = parts;
  }

  /**
   * @param {object} conversation its last turn is the answer, empty or to continue
   * @param {AbortSignal} signal
   * @param {{onText: () => void, onUsage: (usage: object) => void, onStart: (message: string) => void,
   *   onWait: (message: string, seconds: number, goOn: () => void) => void}} listener
   */
  async write(conversation, signal, listener) {
    const turn = conversation.turns.at(-1);
    const begun = turn.text;
    turn.ending = null;
    for (let tries = 1; turn.ending === null; ) {
      try {
        await this.#stream(conversation, turn, signal, listener);
      } catch (error) {
        if (error.name === "AbortError") turn.ending = { reason: "stopped" };
        else if (!(error instanceof Refusal)) throw error;
        else if (turn.text !== begun || !(await this.#overcome(error, turn, tries, signal, listener))) {
          turn.ending ??= { reason: "error", message: error.message };
        }
        if (error.code !== "model_starting") tries += 1;
      }
    }
  }

  /** Remove the cause of a refusal. @returns {Promise<boolean>} whether to try again */
  async #overcome(refusal, turn, tries, signal, listener) {
    const { startup, key, models } = this.#parts;
    try {
      if (refusal.code === "model_starting") {
        await this.#awaitModel(refusal, turn, signal, listener);
        return true;
      }
      if (refusal.code === "unreachable" && tries < MAX_TRIES) {
        await startup.untilReady(signal);
        await this.#takeServed(turn);
        return true;
      }
      if (refusal.code === "model_not_found") return await this.#takeServed(turn);
      if (refusal.code === "no_chat_template") {
        models.noteBase(turn.model);
        turn.isPlain = true;
        return true;
      }
      if (refusal.status === 401) return await key.renew(true);
      if (refusal.retryAfterS === null || tries >= MAX_TRIES) return false;
      await countdown(refusal, signal, listener);
      return true;
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      turn.ending = { reason: "stopped" };
      return true;
    }
  }

  /** Wait until the server is ready. Wait longer if it did not hold a request for a model that still starts. */
  async #awaitModel(refusal, turn, signal, listener) {
    const { startup, connection, models } = this.#parts;
    const wasHeld = !models.isReady(turn.model);
    await startup.untilReady(signal);
    await connection.look();
    const isBound = wasHeld && !models.isReady(turn.model);
    if (isBound && refusal.retryAfterS !== null) await countdown(refusal, signal, listener);
  }

  /**
   * Read the served models, and switch an empty answer to the chosen model if its own is gone. A different model must
   * not continue an answer that has text.
   * @returns {Promise<boolean>} whether the model has changed
   */
  async #takeServed(turn) {
    const { connection, models } = this.#parts;
    await connection.look();
    if (models.serves(turn.model) || !models.chosen || turn.text) return false;
    turn.model = models.chosen;
    turn.isPlain = models.isBase;
    return true;
  }

  async #stream(conversation, turn, signal, { onText, onUsage, onStart }) {
    const { server, startup, models, connection } = this.#parts;
    // While the whole server starts, its panel shows the progress, and the request waits in this page.
    let waitS = models.isReady(turn.model) || startup.isShown ? 0 : WAIT_S;
    if (waitS) onStart(`${turn.model} is starting. The answer comes as soon as it is ready.`);
    const [path, body] = turn.isPlain ? this.#completion(conversation, turn) : this.#chat(conversation, turn);
    const clock = new Clock(turn);
    let ended = { reason: "error", message: "The answer ended without a finish reason." };
    for await (const chunk of server.generate(path, body, signal, waitS)) {
      // The model runs now, and its context length is known.
      if (waitS) void connection.look();
      waitS = 0;
      const [choice] = chunk.choices;
      const text = choice?.delta?.content ?? choice?.text ?? "";
      const reasoning = choice?.delta?.reasoning_content ?? "";
      turn.text += text;
      turn.reasoning += reasoning;
      clock.see(chunk.usage, Boolean(text || reasoning));
      if (chunk.usage) onUsage(chunk.usage);
      if (choice?.finish_reason) ended = { reason: choice.finish_reason, stop: choice.stop_reason };
      onText();
    }
    turn.ending = ended;
  }

  #chat(conversation, turn) {
    const continued = turn.text ? { continue_final_message: true, add_generation_prompt: false } : {};
    return ["v1/chat/completions", { ...this.#common(turn), messages: messagesOf(conversation), ...continued }];
  }

  #completion(conversation, turn) {
    return ["v1/completions", { ...this.#common(turn), prompt: textOf(conversation) }];
  }

  #common(turn) {
    return {
      model: turn.model,
      stream: true,
      // Usage with every chunk, so that a stopped answer has its token count, too.
      stream_options: { include_usage: true, continuous_usage_stats: true },
      ...this.#parts.settings.request(turn.isPlain),
    };
  }
}

/** Counts an answer's tokens and measures its token rate. A continued answer keeps its earlier tokens. */
class Clock {
  #turn;
  #begun;
  #startMs = performance.now();
  #firstMs = null;

  constructor(turn) {
    this.#turn = turn;
    this.#begun = turn.tokens;
  }

  see(usage, isText) {
    const now = performance.now();
    if (isText && this.#firstMs === null) {
      this.#firstMs = now;
      this.#turn.ttftMs ??= now - this.#startMs;
    }
    if (!usage) return;
    this.#turn.tokens = this.#begun + usage.completion_tokens;
    const elapsedS = (now - (this.#firstMs ?? now)) / 1000;
    if (isText && elapsedS > 0) this.#turn.rate = (usage.completion_tokens - 1) / elapsedS;
  }
}

/** Wait for the server's `Retry-After`, and show the remaining seconds. */
async function countdown(refusal, signal, { onWait }) {
  const untilMs = performance.now() + refusal.retryAfterS * 1000;
  await new Promise((resolve, reject) => {
    const tick = () => {
      const leftMs = untilMs - performance.now();
      if (leftMs <= 0) goOn();
      else onWait(refusal.message, Math.ceil(leftMs / 1000), goOn);
    };
    const timer = setInterval(tick, TICK_MS);
    const goOn = () => {
      clearInterval(timer);
      resolve();
    };
    const stop = () => {
      clearInterval(timer);
      reject(signal.reason);
    };
    signal.addEventListener("abort", stop, { once: true });
    tick();
  });
}
