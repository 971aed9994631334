import { element } from "./element.js";

/** One setting: label, control, hint and error. */
export class Field {
  #isSwitch;
  #isNumber;
  #hint;
  #wrong;

  /**
   * @param {{name: string, label: string, hint?: string, kind?: "number" | "text" | "lines" | "prose" | "switch",
   *   empty?: string, isHalf?: boolean}} form other entries are bounds of a number
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

  /** The value as stored text; "" if not set. */
  get text() {
    if (this.#isSwitch) return this.input.checked ? "on" : "";
    return this.input.value;
  }

  set text(text) {
    if (this.#isSwitch) this.input.checked = text === "on";
    // Assign only a change, because an assignment moves the cursor.
    else if (this.input.value !== text) this.input.value = text;
  }

  /** The value for a request: a number, a text or true; null if not set or invalid. */
  get value() {
    if (this.text === "" || this.isWrong) return null;
    if (this.#isSwitch) return true;
    return this.#isNumber ? this.input.valueAsNumber : this.input.value;
  }

  set empty(words) {
    this.input.placeholder = words;
  }

  /** Make the field read-only and show the reason below it; "" makes it editable. */
  set lock(reason) {
    this.input.readOnly = reason !== "";
    this.#wrong.textContent = reason;
  }

  get isWrong() {
    return !this.input.validity.valid;
  }

  /** @param {string} wrong an error beyond the field's own bounds, or "" */
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
