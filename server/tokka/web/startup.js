import { announce } from "./announcer.js";
import { byId, element } from "./element.js";
import { Refusal } from "./server.js";

const RETRY_MS = 2000;
const TICK_MS = 1000;
const TEXTS = {
  starting: ["The model is starting", "You can write already. The answer comes as soon as the model is ready."],
  failed: ["The engine stopped", "The server is restarting it. This page continues when it is ready."],
  gone: ["No connection to the server", "This page keeps trying. Is the server running?"],
};

/** Shows the phases of the engine's start until it is ready. */
export class Startup {
  #server;
  #panel = byId("startup");
  #phases = byId("phases");
  #clock = byId("startup-clock");
  #following = null;
  #kind = "";
  #beganMs = 0;

  /** @param {() => void} onToggle called when the panel is shown or hidden */
  constructor(server, onToggle) {
    this.#server = server;
    this.onToggle = onToggle;
  }

  get isShown() {
    return !this.#panel.hidden;
  }

  /** Wait until the engine is ready. Throws AbortError if the signal is aborted. */
  async untilReady(signal) {
    this.#following ??= this.#follow().finally(() => (this.#following = null));
    await Promise.race([this.#following, aborted(signal)]);
  }

  async #follow() {
    const ticking = setInterval(() => this.#tick(), TICK_MS);
    try {
      while (!(await this.#isReady())) await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    } finally {
      clearInterval(ticking);
      this.#hide();
    }
  }

  async #isReady() {
    try {
      for await (const progress of this.#server.phases()) {
        // A sleeping server starts a model for the first message.
        if (["ready", "asleep"].includes(progress.state)) return true;
        this.#show(progress);
      }
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.#describe("gone");
      this.#phases.replaceChildren();
      this.#clock.textContent = "";
      this.#beganMs = 0;
    }
    return false;
  }

  #show({ state, phase, detail, elapsed_s: elapsedS }) {
    if (state === "failed") this.#phases.replaceChildren();
    this.#describe(state === "failed" ? "failed" : "starting");
    this.#beganMs = performance.now() - elapsedS * 1000;
    const current = this.#phases.lastElementChild;
    if (current?.dataset.phase !== phase) {
      if (current) this.#finish(current);
      const item = element("li", { "data-phase": phase, "aria-current": "step" }, element("span", {}, phrase(phase)));
      item.append(element("span", { class: "detail" }), element("span", { class: "took" }));
      item.beganMs = performance.now();
      this.#phases.append(item);
      announce(phrase(phase));
    }
    this.#phases.lastElementChild.querySelector(".detail").textContent = detail;
    this.#tick();
  }

  #finish(item) {
    item.removeAttribute("aria-current");
    item.querySelector(".took").textContent = seconds(performance.now() - item.beganMs);
  }

  #describe(kind) {
    if (this.#kind === kind) return;
    this.#kind = kind;
    const [title, text] = TEXTS[kind];
    byId("startup-title").textContent = title;
    byId("startup-text").textContent = text;
    this.#panel.hidden = false;
    this.onToggle();
    announce(title);
  }

  #tick() {
    if (this.#beganMs) this.#clock.textContent = `${seconds(performance.now() - this.#beganMs)} so far`;
  }

  #hide() {
    if (this.#panel.hidden) return;
    this.#panel.hidden = true;
    this.#kind = "";
    this.#phases.replaceChildren();
    announce("The model is ready");
    this.onToggle();
  }
}

function aborted(signal) {
  return new Promise((_, reject) => {
    if (signal?.aborted) reject(signal.reason);
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

function phrase(phase) {
  return phase.charAt(0).toUpperCase() + phase.slice(1);
}

function seconds(ms) {
  return `${Math.floor(ms / 1000)} s`;
}
