import { element } from "./element.js";

/** One setting: a label, a control of its kind, what it means, and what is wrong with its value. */
export class Field {
  #isSwitch;
  #isNumber;
  #hint;
  #wrong;

  /**
   * @param {{name: string, label: string, hint?: string, kind?: "number" | "text" | "lines" | "prose" | "switch",
   *   empty?: string, isHalf?: boolean}} form anything else is a bound of a number
   */
  constructor({ name, label, hint = "", kind = "number", empty, isHalf = false, ...bounds }) {
    const id = `option-${name}`;
    this.#isSwitch = kind === "switch";
    this.#isNumber = kind === "number";
    this.input = control(kind, { id, "aria-describedby": `${id}-hint ${id}-wrong`, placeholder: empty }, bounds);
    this.#hint = element("p", { class: "hint", id: `${id}-hint` }, hint);
    this.#wrong = element("p", { class: "wrong", id: `${id}-wrong` });
    const words = element("label", { for: id }, label);
    const head = this.#isSwitch ? [element("div", { class: "switch" }, this.input, words)] : [words, this.input];
    this.node = element("div", { class: isHalf ? "option half" : "option" }, ...head, this.#hint, this.#wrong);
  }

  /** What it holds, as it is kept; "" if it is not set. */
  get text() {
    if (this.#isSwitch) return this.input.checked ? "on" : "";
    return this.input.value;
  }

  set text(text) {
    if (this.#isSwitch) this.input.checked = text === "on";
    // Set anew it would lose the place in it.
    else if (this.input.value !== text) this.input.value = text;
  }

  /** What it asks for: a number, a text or true; null if it is not set, or wrong. */
  get value() {
    if (this.text === "" || this.isWrong) return null;
    if (this.#isSwitch) return true;
    return this.#isNumber ? this.input.valueAsNumber : this.input.value;
  }

  set empty(words) {
    this.input.placeholder = words;
  }

  /** It can be read only, for a reason that stands below it; "" if it can be written. */
  set lock(reason) {
    this.input.readOnly = reason !== "";
    this.#wrong.textContent = reason;
  }

  get isWrong() {
    return !this.input.validity.valid;
  }

  /** @param {string} wrong what is wrong beyond its bounds, or "" */
  check(wrong) {
    this.input.setCustomValidity(wrong);
    this.#wrong.textContent = this.input.validationMessage;
    this.input.setAttribute("aria-invalid", String(this.isWrong));
  }
}

function control(kind, attributes, bounds) {
  switch (kind) {
    case "switch":
      return element("input", { type: "checkbox", ...attributes });
    case "prose":
      return element("textarea", { rows: 4, ...attributes });
    case "lines":
      return element("textarea", { rows: 2, spellcheck: "false", ...attributes });
    case "text":
      return element("input", { type: "text", autocomplete: "off", spellcheck: "false", ...attributes });
    default:
      return element("input", { type: "number", inputmode: "decimal", ...attributes, ...bounds });
  }
}
