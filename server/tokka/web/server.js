import { eventsOf } from "./events.js";

/** A failed request, with a message for the reader. */
export class Refusal extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string | null, retryAfterS?: number | null}} details
   *   `status`: 0 without a response; `retryAfterS`: null if a retry alone cannot succeed
   */
  constructor(message, { status = 0, code = null, retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** The server of this page. Each method throws Refusal, or AbortError if its signal is aborted. */
export class Server {
  #key;

  /** @param {import("./key.js").Key} key */
  constructor(key) {
    this.#key = key;
  }

  /** @returns {Promise<{id: string, max_model_len: number | null, state?: string}[]>} */
  async models() {
    const page = await this.#read("v1/models");
    if (!Array.isArray(page?.data)) throw unreadable();
    // An embedding model cannot answer. Other servers do not tell.
    return page.data.filter((model) => !model.tasks || model.tasks.includes("generate"));
  }

  /** @returns {Promise<{version: string, engine: string | null}>} */
  async version() {
    return this.#read("version");
  }

  /** Count the tokens of `{prompt}` or `{messages}`. @returns {Promise<{count: number, max_model_len: number}>} */
  async count(body, signal) {
    return this.#read("tokenize", { body, signal });
  }

  /** Yield the phases of the engine's start: first the present one, last `ready` or `stopped`. */
  async *phases() {
    const response = await this.#call("startupz", { accept: "text/event-stream" });
    for await (const data of this.#events(response)) yield parsed(data);
  }

  /**
   * Yield the chunks of a generation. `path`: v1/chat/completions or v1/completions. `waitS`: seconds that the request
   * may wait for its model to start.
   */
  async *generate(path, body, signal, waitS) {
    const response = await this.#call(path, { body, signal, waitS });
    for await (const data of this.#events(response)) {
      if (data === "[DONE]") return;
      const chunk = parsed(data);
      if (chunk.error) throw new Refusal(chunk.error.message, { status: 200, code: chunk.error.code });
      yield chunk;
    }
    throw new Refusal("The connection ended before the answer was complete.", { code: "cut" });
  }

  async #read(path, options) {
    const response = await this.#call(path, options);
    try {
      return parsed(await response.text());
    } catch (error) {
      if (error.name === "AbortError" || error instanceof Refusal) throw error;
      throw new Refusal("The connection to the server was lost.", { code: "cut" });
    }
  }

  async *#events(response) {
    try {
      yield* eventsOf(response.body);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The connection to the server was lost.", { code: "cut" });
    }
  }

  async #call(path, { body, signal, accept, waitS } = {}) {
    const headers = {};
    if (waitS) headers["x-tokka-wait"] = String(waitS);
    if (accept) headers.accept = accept;
    if (body) headers["content-type"] = "application/json";
    if (this.#key.value) headers.authorization = `Bearer ${this.#key.value}`;
    let response;
    try {
      const method = body ? "POST" : "GET";
      response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("Cannot connect to the server. Is it running?", { code: "unreachable" });
    }
    if (!response.ok) throw await refusalOf(response);
    return response;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw unreadable();
  }
}

/** Return the error for a foreign response, from a proxy or a login portal. */
function unreadable() {
  return new Refusal("This response is not from the Tokka server. Is there a proxy in front of it? Reload the page.", {
    code: "unreadable",
  });
}

async function refusalOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // The body is a proxy's page, not the server's JSON.
  }
  const after = Number(response.headers.get("retry-after") ?? Number.NaN);
  const isHopeless = response.headers.get("x-should-retry") === "false" || ![429, 503].includes(response.status);
  return new Refusal(error.message ?? `The server responded with status ${response.status}.`, {
    status: response.status,
    code: error.code ?? null,
    retryAfterS: isHopeless || !Number.isFinite(after) ? null : after,
  });
}
