import { copyButton } from "./clipboard.js";
import { element, icon } from "./element.js";
import { ending, figures, isFailure, isUnfinished } from "./ending.js";
import { Prose } from "./prose.js";

/** What the reader wrote. */
export class QuestionView {
  #text;

  constructor(turn) {
    this.#text = turn.text;
    this.node = element("article", { class: "turn question", "aria-label": "You" }, element("div", {}, turn.text));
  }

  /** @returns {boolean} whether this is a view of that turn */
  take({ role, text }) {
    return role === "user" && text === this.#text;
  }

  settle() {}
}

/** An answer, while it is written and after. */
export class AnswerView {
  #turn;
  #body;
  #prose;
  #reasoning;
  #thoughts = element("div");
  #waiting = element("p", { class: "waiting" });
  #foot = element("footer");
  #who = element("h2", { class: "who" });
  // What the foot was made from.
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

  /** Show this turn instead, with what is there already. @returns {boolean} whether it is an answer */
  take(turn) {
    if (turn.role === "user") return false;
    const isSame = turn.text === this.#turn.text && turn.reasoning === this.#turn.reasoning;
    this.#turn = turn;
    if (!isSame) this.show();
    return true;
  }

  /** Show the text as far as it has come. */
  show() {
    const { text, reasoning, isPlain, model } = this.#turn;
    // Another model may have taken its place while the server was gone.
    if (this.#who.textContent !== model) {
      this.#who.textContent = model;
      this.node.setAttribute("aria-label", `Answer of ${model}`);
    }
    this.#body.classList.toggle("plain", Boolean(isPlain));
    if (!isPlain) this.#prose.show(text);
    else if (this.#body.textContent !== text) this.#body.textContent = text;
    this.#reasoning.hidden = !reasoning;
    this.#thoughts.textContent = reasoning ?? "";
  }

  /** It is being written: only the text changes now. @param {string} words instead of how far it has come */
  begin(words = this.#progress) {
    this.node.setAttribute("aria-busy", "true");
    this.#foot.replaceChildren();
    this.#settled = "";
    this.node.classList.remove("failed");
    this.#waiting.hidden = false;
    this.#dots(words);
  }

  /** Text has come. */
  grow() {
    this.show();
    this.#dots(this.#progress);
  }

  /** The server is busy: say so, and until when. */
  wait(message, seconds, goOn) {
    this.#goOn = goOn;
    const again = element("button", { type: "button", class: "small", onclick: () => this.#goOn() }, "Try now");
    const words = `${message} Trying again in ${seconds} s.`;
    // The button stays the same one, so that it can be pressed.
    if (this.#waiting.lastChild?.localName === "button") this.#waiting.firstChild.textContent = words;
    else this.#waiting.replaceChildren(element("span", {}, words), again);
  }

  /** It is complete. @param {boolean} isLast the last one can be changed */
  settle(isLast) {
    const turn = this.#turn;
    this.node.removeAttribute("aria-busy");
    this.#waiting.hidden = true;
    const settled = JSON.stringify([isLast, turn.ending, turn.text !== "", figures(turn)]);
    // Whoever is at a button of it stays there.
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
    // The dots stay the same ones, so that they keep their beat.
    if (this.#waiting.firstChild?.className !== "dots") {
      this.#waiting.replaceChildren(element("span", { class: "dots", "aria-hidden": "true" }), element("span"));
    }
    this.#waiting.lastChild.textContent = words;
  }

  #buttons(isLast) {
    const turn = this.#turn;
    const bar = element("div", { class: "actions" });
    if (isLast && isUnfinished(turn)) {
      const more = button("more", "Continue", "Go on where the answer ends", this.actions.resume);
      more.classList.remove("quiet");
      bar.append(more);
    }
    if (turn.text) bar.append(copyButton(() => this.#turn.text, "Copy this answer"));
    if (!isLast) return bar;
    const isRetry = isFailure(turn) && !turn.text;
    const [name, title] = isRetry ? ["Retry", "Ask again"] : ["Regenerate", "Have the answer written anew"];
    bar.append(button("again", name, title, this.actions.regenerate));
    bar.append(button("remove", "Remove turn", "Take back the question and this answer", this.actions.remove));
    return bar;
  }
}

function button(picture, label, title, onclick) {
  return element("button", { type: "button", class: "quiet small", title, onclick }, icon(picture), label);
}
