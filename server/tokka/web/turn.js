import { copyButton } from "./clipboard.js";
import { element, icon } from "./element.js";
import { ending, figures, isFailure, isUnfinished } from "./ending.js";
import { Prose } from "./prose.js";

/** A message of the reader. */
export class QuestionView {
  #text;

  constructor(turn) {
    this.#text = turn.text;
    this.node = element("article", { class: "turn question", "aria-label": "You" }, element("div", {}, turn.text));
  }

  /** @returns {boolean} whether this view shows the turn */
  take({ role, text }) {
    return role === "user" && text === this.#text;
  }

  settle() {}
}

/** An answer, during generation and after it. */
export class AnswerView {
  #turn;
  #body;
  #prose;
  #reasoning;
  #thoughts = element("div");
  #waiting = element("p", { class: "waiting" });
  #foot = element("footer");
  #who = element("h2", { class: "who" });
  // The state that the footer shows.
  #settled = "";
  #goOn = () => {};

  /** @param {{regenerate: () => void, resume: () => void, remove: () => void}} actions of the last answer */
  constructor(turn, actions) {
    this.#turn = turn;
    this.actions = actions;
    this.#body = element("div", { class: turn.isPlain ? "prose plain" : "prose" });
    this.#prose = new Prose(this.#body);
    this.#reasoning = element("details", { hidden: true }, element("summary", {}, "Reasoning"), this.#thoughts);
    this.node = element("article", { class: "turn answer" });
    this.node.append(this.#who, this.#reasoning, this.#body, this.#waiting, this.#foot);
    this.show();
  }

  /** Show this turn instead and reuse the nodes. @returns {boolean} whether the turn is an answer */
  take(turn) {
    if (turn.role === "user") return false;
    const isSame = turn.text === this.#turn.text && turn.reasoning === this.#turn.reasoning;
    this.#turn = turn;
    if (!isSame) this.show();
    return true;
  }

  /** Show the text so far. */
  show() {
    const { text, reasoning, isPlain, model } = this.#turn;
    // The model may have changed while the server was unreachable.
    if (this.#who.textContent !== model) {
      this.#who.textContent = model;
      this.node.setAttribute("aria-label", `Answer from ${model}`);
    }
    this.#body.classList.toggle("plain", Boolean(isPlain));
    if (!isPlain) this.#prose.show(text);
    else if (this.#body.textContent !== text) this.#body.textContent = text;
    this.#reasoning.hidden = !reasoning;
    this.#thoughts.textContent = reasoning ?? "";
  }

  /** Show the answer as in progress. @param {string} words shown instead of the progress */
  begin(words = this.#progress) {
    this.node.setAttribute("aria-busy", "true");
    this.#foot.replaceChildren();
    this.#settled = "";
    this.node.classList.remove("failed");
    this.#waiting.hidden = false;
    this.#dots(words);
  }

  /** Show new text. */
  grow() {
    this.show();
    this.#dots(this.#progress);
  }

  /** Show that the server is busy, and the seconds until the next try. */
  wait(message, seconds, goOn) {
    this.#goOn = goOn;
    const again = element("button", { type: "button", class: "small", onclick: () => this.#goOn() }, "Try now");
    const words = `${message} Trying again in ${seconds} s.`;
    // Keep the button: a replaced one would lose a press.
    if (this.#waiting.lastChild?.localName === "button") this.#waiting.firstChild.textContent = words;
    else this.#waiting.replaceChildren(element("span", {}, words), again);
  }

  /** Show the answer as complete. @param {boolean} isLast only the last answer has actions that change it */
  settle(isLast) {
    const turn = this.#turn;
    this.node.removeAttribute("aria-busy");
    this.#waiting.hidden = true;
    const settled = JSON.stringify([isLast, turn.ending, turn.text !== "", figures(turn)]);
    // Keep an unchanged footer, so that a focused button keeps the focus.
    if (settled === this.#settled) return;
    this.#settled = settled;
    this.node.classList.toggle("failed", isFailure(turn));
    this.node.classList.toggle("last", isLast);
    const words = element("p", { class: "ending" }, element("span", {}, ending(turn)));
    if (turn.text) words.append(element("span", { class: "figures" }, figures(turn)));
    this.#foot.replaceChildren(words, this.#buttons(isLast));
  }

  get #progress() {
    const { text, reasoning } = this.#turn;
    if (text) return figures(this.#turn);
    return reasoning ? "Thinking" : "Waiting for the first words";
  }

  #dots(words) {
    // Keep the dots, so that their animation does not restart.
    if (this.#waiting.firstChild?.className !== "dots") {
      this.#waiting.replaceChildren(element("span", { class: "dots", "aria-hidden": "true" }), element("span"));
    }
    this.#waiting.lastChild.textContent = words;
  }

  #buttons(isLast) {
    const turn = this.#turn;
    const bar = element("div", { class: "actions" });
    if (isLast && isUnfinished(turn)) {
      const more = button("more", "Continue", "Continue from the end of the answer", this.actions.resume);
      more.classList.remove("quiet");
      bar.append(more);
    }
    if (turn.text) bar.append(copyButton(() => this.#turn.text, "Copy this answer"));
    if (!isLast) return bar;
    const isRetry = isFailure(turn) && !turn.text;
    const [name, title] = isRetry ? ["Retry", "Ask again"] : ["Regenerate", "Generate the answer again"];
    bar.append(button("again", name, title, this.actions.regenerate));
    bar.append(button("remove", "Remove", "Remove your last message and this answer", this.actions.remove));
    return bar;
  }
}

function button(picture, label, title, onclick) {
  return element("button", { type: "button", class: "quiet small", title, onclick }, icon(picture), label);
}
