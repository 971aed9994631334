import { byId, element } from "./element.js";

const SUGGESTIONS = [
  "What is the capital of Finland?",
  "Why is the sky blue?",
  "Give me three tips for learning Finnish.",
];
const BASE_SUGGESTIONS = ["Helsinki is the capital of", "Once upon a time", "The three laws of"];

/** Shown in an empty conversation: the model's name and suggestions. */
export class Greeting {
  #section = byId("greeting");

  /** @param {(text: string) => void} onChoose called with the chosen suggestion */
  constructor(onChoose) {
    this.onChoose = onChoose;
  }

  show({ isBase, isAsleep, chosen }) {
    this.#section.hidden = false;
    byId("greeting-title").textContent = isBase ? `Start a text and ${chosen} continues it` : `Talk to ${chosen}`;
    byId("greeting-text").textContent = isAsleep
      ? "This model is asleep. Your first message starts it."
      : isBase
        ? "This is a base model: it has no chat template and cannot chat. It continues your text."
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
