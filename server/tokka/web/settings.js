import { byId, element } from "./element.js";

const NAME = "tokka.settings";
const MAX_STOPS = 16;
const MAX_STOP_CHARS = 256;
// A base model seldom ends by itself.
const BASE_TOKENS = 200;
const SYSTEM = { label: "System prompt", hint: "How the model shall behave in this conversation." };
const STOP_HINT = "One a line, up to 16; \\n is a line end. The answer ends before the first that comes up.";
const FRACTION = { min: 0, step: "any", isHalf: true };
const FIELDS = [
  { name: "max_completion_tokens", label: "Longest answer, in tokens", empty: "Rest of the context", min: 1, step: 1 },
  { name: "stop", label: "Stop strings", empty: "None", hint: STOP_HINT, isText: true },
  { name: "temperature", label: "Temperature", empty: "Default", hint: "0 to 2", ...FRACTION, max: 2 },
  { name: "top_p", label: "Top p", empty: "Default", hint: "0 to 1", ...FRACTION, max: 1 },
  { name: "seed", label: "Seed", empty: "None", hint: "The same seed gives the same answer.", step: 1 },
];

/** What is asked of the model: the system prompt, which is the conversation's, and what the browser keeps for all. */
export class Settings {
  #form = byId("options");
  #inputs = {};
  #system;

  /** @param {(system: string) => void} onSystem  @param {() => void} onChange */
  constructor(onSystem, onChange) {
    this.#system = element("textarea", { rows: 4, placeholder: "Default" });
    this.#system.addEventListener("input", () => onSystem(this.#system.value));
    this.#form.append(row("system", this.#system, SYSTEM));
    for (const field of FIELDS) this.#add(field);
    const reset = element("button", { type: "button", onclick: () => this.#reset(onChange) }, "Reset");
    this.#form.append(reset);
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("input", () => {
      this.#check();
      this.#store();
      onChange();
    });
    this.#restore();
    this.#check();
  }

  set system(text) {
    this.#system.value = text;
  }

  /** A base model's texts have a length even if none is given. */
  set isBase(isBase) {
    this.#inputs.max_completion_tokens.placeholder = isBase ? String(BASE_TOKENS) : FIELDS[0].empty;
  }

  /** The first field with a wrong value, or null. */
  get wrong() {
    return Object.values(this.#inputs).find((input) => !input.validity.valid) ?? null;
  }

  /** Tokens asked for at most, or null. */
  get limit() {
    return this.#number("max_completion_tokens");
  }

  /** Return the fields of a request that these settings make. */
  request(isBase) {
    const limit = this.limit ?? (isBase ? BASE_TOKENS : null);
    const fields = {
      [isBase ? "max_tokens" : "max_completion_tokens"]: limit,
      temperature: this.#number("temperature"),
      top_p: this.#number("top_p"),
      seed: this.#number("seed"),
      stop: this.#stops().length ? this.#stops() : null,
    };
    return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null));
  }

  #add({ name, label, hint, empty, isText, isHalf, ...bounds }) {
    const input = isText
      ? element("textarea", { rows: 2, spellcheck: "false", placeholder: empty })
      : element("input", { type: "number", inputmode: "decimal", placeholder: empty, ...bounds });
    this.#inputs[name] = input;
    this.#form.append(row(name, input, { label, hint, isHalf }));
  }

  #number(name) {
    const { value, valueAsNumber, validity } = this.#inputs[name];
    return value === "" || !validity.valid ? null : valueAsNumber;
  }

  #stops() {
    const lines = this.#inputs.stop.value.split("\n").filter((line) => line !== "");
    return lines.map((line) => line.replaceAll("\\n", "\n"));
  }

  #check() {
    const stops = this.#stops();
    const isWrong = stops.length > MAX_STOPS || stops.some((stop) => stop.length > MAX_STOP_CHARS);
    this.#inputs.stop.setCustomValidity(isWrong ? `Up to ${MAX_STOPS} of up to ${MAX_STOP_CHARS} characters.` : "");
    const seed = this.#inputs.seed;
    const isTooLong = seed.value !== "" && !Number.isSafeInteger(seed.valueAsNumber);
    seed.setCustomValidity(isTooLong ? "A whole number, up to 2^53." : "");
    for (const input of Object.values(this.#inputs)) {
      const wrong = byId(`${input.id}-wrong`);
      wrong.textContent = input.validationMessage;
      input.setAttribute("aria-invalid", String(!input.validity.valid));
    }
  }

  #reset(onChange) {
    for (const input of Object.values(this.#inputs)) input.value = "";
    this.#check();
    this.#store();
    onChange();
  }

  #store() {
    const values = Object.fromEntries(Object.entries(this.#inputs).map(([name, input]) => [name, input.value]));
    try {
      localStorage.setItem(NAME, JSON.stringify(values));
    } catch {
      // They hold until the page is left.
    }
  }

  #restore() {
    try {
      const values = JSON.parse(localStorage.getItem(NAME) ?? "{}");
      for (const [name, input] of Object.entries(this.#inputs)) input.value = values[name] ?? "";
    } catch {
      // Blocked, or not ours: none then.
    }
  }
}

function row(name, input, { label, hint = "", isHalf = false }) {
  const id = `option-${name}`;
  input.id = id;
  input.setAttribute("aria-describedby", `${id}-hint ${id}-wrong`);
  return element(
    "div",
    { class: isHalf ? "option half" : "option" },
    element("label", { for: id }, label),
    input,
    element("p", { class: "hint", id: `${id}-hint` }, hint),
    element("p", { class: "wrong", id: `${id}-wrong` }),
  );
}
