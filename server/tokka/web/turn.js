import { copyButton } from "./clipboard.js";
import { element, icon } from "./element.js";
import { ending, figures, isFailure, isUnfinished } from "./ending.js";
import { Prose } from "./prose.js";

/** What the reader wrote. */
export class QuestionView {
  constructor(turn) {
    this.node = element("article", { class: "turn question", "aria-label": "You" }, element("div", {}, turn.text));
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

  /** @param {{regenerate: () => void, resume: () => void, remove: () => void}} actions of the last answer */
  constructor(turn, actions) {
    this.#turn = turn;
    this.actions = actions;
    this.#body = element("div", { class: turn.isPlain ? "prose plain" : "prose" });
    this.#prose = new Prose(this.#body);
    this.#reasoning = element("details", { hidden: true }, element("summary", {}, "Reasoning"), this.#thoughts);
    this.node = element("article", { class: "turn answer", "aria-label": `Answer of ${turn.model}` });
    const who = element("h2", { class: "who" }, turn.model);
    this.node.append(who, this.#reasoning, this.#body, this.#waiting, this.#foot);
    this.show();
  }

  /** Show the text as far as it has come. */
  show() {
    const { text, reasoning, isPlain } = this.#turn;
    this.#body.classList.toggle("plain", Boolean(isPlain));
    if (isPlain) this.#body.textContent = text;
    else this.#prose.show(text);
    this.#reasoning.hidden = !reasoning;
    this.#thoughts.textContent = reasoning ?? "";
  }

  /** It is being written: only the text changes now. */
  begin() {
    this.node.setAttribute("aria-busy", "true");
    this.#foot.replaceChildren();
    this.node.classList.remove("failed");
    this.#waiting.hidden = false;
    this.#dots();
  }

  /** Text has come. */
  grow() {
    this.show();
    this.#dots();
  }

  /** The server is busy: say so, and until when. */
  wait(message, seconds, goOn) {
    const again = element("button", { type: "button", class: "small", onclick: goOn }, "Try now");
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
    this.node.classList.toggle("failed", isFailure(turn));
    this.node.classList.toggle("last", isLast);
    const words = element("p", { class: "ending" }, element("span", {}, ending(turn)));
    if (turn.text) words.append(element("span", { class: "figures" }, figures(turn)));
    this.#foot.replaceChildren(words, this.#buttons(isLast));
  }

  #dots() {
    const { text, reasoning } = this.#turn;
    const words = text ? figures(this.#turn) : reasoning ? "Thinking" : "Waiting for the first words";
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
    if (turn.text) bar.append(copyButton(() => turn.text, "Copy this answer"));
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
