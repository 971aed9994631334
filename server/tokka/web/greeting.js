import { byId, element } from "./element.js";

const SUGGESTIONS = [
  "What is the capital of Finland?",
  "Why is the sky blue?",
  "Give me three tips for learning Finnish.",
];
const BASE_SUGGESTIONS = ["Helsinki is the capital of", "Once upon a time", "The three laws of"];

/** What stands where no turn is yet: whom one talks to, and what one could say. */
export class Greeting {
  #section = byId("greeting");

  /** @param {(text: string) => void} onChoose a suggestion was taken */
  constructor(onChoose) {
    this.onChoose = onChoose;
  }

  show({ isBase, chosen }) {
    this.#section.hidden = false;
    byId("greeting-title").textContent = isBase ? `Begin a text, ${chosen} goes on` : `Talk to ${chosen}`;
    byId("greeting-text").textContent = isBase
      ? "This is a base model: it has no chat template and cannot answer a conversation. It continues what you write."
      : "Conversations stay in this browser.";
    const suggestions = isBase ? BASE_SUGGESTIONS : SUGGESTIONS;
    byId("suggestions").replaceChildren(...suggestions.map((text) => this.#suggestion(text)));
  }

  hide() {
    this.#section.hidden = true;
  }

  #suggestion(text) {
    return element("li", {}, element("button", { type: "button", onclick: () => this.onChoose(text) }, text));
  }
}
