import { byId, element } from "./element.js";
import { Field } from "./field.js";
import { stopsOf, tokenIdsOf } from "./stops.js";

const NAME = "tokka.settings";
const MAX_STOPS = 16;
const MAX_STOP_CHARS = 256;
const MAX_STOP_TOKENS = 128;
const MAX_TOKEN_ID = 2 ** 31 - 1;
// Default maximum tokens for a base model, which seldom ends by itself.
const BASE_TOKENS = 200;
const ELSEWHERE = "This conversation is being written in another tab.";
const SYSTEM = { name: "system", label: "System prompt", kind: "prose", empty: "Default" };
const REST = "Rest of the context";
const FRACTION = { min: 0, step: "any", isHalf: true };
const PLAIN = [
  { name: "max_completion_tokens", label: "Longest answer, in tokens", empty: REST, min: 1, step: 1 },
  {
    name: "stop",
    label: "Stop strings",
    kind: "lines",
    empty: "None",
    hint: "One a line, up to 16. The answer ends before the first match. \\n is a line break, \\\\ a backslash.",
  },
  { name: "temperature", label: "Temperature", empty: "Default", hint: "0 to 2", ...FRACTION, max: 2 },
  { name: "top_p", label: "Top p", empty: "Default", hint: "0 to 1", ...FRACTION, max: 1 },
  { name: "seed", label: "Seed", empty: "None", hint: "The same seed gives the same answer.", step: 1 },
];
const ADVANCED = [
  {
    name: "include_stop_str_in_output",
    label: "Keep the stop string",
    kind: "switch",
    hint: "The answer ends after it, not before.",
  },
  {
    name: "min_tokens",
    label: "Shortest answer, in tokens",
    empty: "None",
    hint: "The answer cannot end earlier.",
    min: 0,
    step: 1,
  },
  {
    name: "ignore_eos",
    label: "Ignore the end token",
    kind: "switch",
    hint: "Keep generating after the end-of-sequence token, up to the limit.",
  },
  {
    name: "stop_token_ids",
    label: "Stop token ids",
    kind: "text",
    empty: "None",
    hint: "Numbers, separated by commas. The answer ends at the first match.",
  },
];

/** The settings form: the conversation's system prompt, and the request fields stored for all conversations. */
export class Settings {
  #form = byId("options");
  #fields = {};
  #system = new Field({ ...SYSTEM, hint: "How the model should behave in this conversation." });
  #advanced = element("details", {}, element("summary", {}, "Advanced"));

  /** @param {(system: string) => void} onSystem */
  constructor(onSystem) {
    this.#system.input.addEventListener("input", () => onSystem(this.#system.text));
    this.#form.append(this.#system.node, ...this.#add(PLAIN), this.#advanced);
    this.#advanced.append(...this.#add(ADVANCED));
    this.#form.append(element("button", { type: "button", onclick: () => this.#reset() }, "Reset"));
    this.#form.addEventListener("submit", (event) => event.preventDefault());
    this.#form.addEventListener("input", () => {
      this.#check();
      this.#store();
    });
    this.#restore();
    this.#check();
    // Open the section if one of its settings is in use.
    this.#advanced.open = ADVANCED.some(({ name }) => this.#fields[name].text !== "");
  }

  set system(text) {
    this.#system.text = text;
  }

  /** Lock the system prompt while another tab writes the conversation. */
  set isElsewhere(isElsewhere) {
    this.#system.lock = isElsewhere ? ELSEWHERE : "";
  }

  /** Show the default length, which differs for a base model. */
  set isBase(isBase) {
    this.#fields.max_completion_tokens.empty = isBase ? String(BASE_TOKENS) : REST;
  }

  get isWrong() {
    return this.#wrong !== undefined;
  }

  /** Take the reader to the first wrong value. */
  showWrong() {
    const { input } = this.#wrong;
    if (this.#advanced.contains(input)) this.#advanced.open = true;
    input.focus();
  }

  /** Return the request fields for these settings. */
  request(isBase) {
    const { max_completion_tokens: longest, stop, stop_token_ids: ids, ...others } = this.#fields;
    const limit = longest.value ?? (isBase ? BASE_TOKENS : null);
    const asked = {
      [isBase ? "max_tokens" : "max_completion_tokens"]: limit,
      stop: listed(stopsOf(stop.text)),
      stop_token_ids: listed(tokenIdsOf(ids.text)),
      ...Object.fromEntries(Object.entries(others).map(([name, field]) => [name, field.value])),
    };
    return Object.fromEntries(Object.entries(asked).filter(([, value]) => value !== null));
  }

  get #wrong() {
    return Object.values(this.#fields).find((field) => field.isWrong);
  }

  #add(forms) {
    return forms.map((form) => (this.#fields[form.name] = new Field(form)).node);
  }

  /** Check the rules beyond the bounds of single numbers. */
  #check() {
    const { stop, stop_token_ids: ids, seed, min_tokens: shortest, max_completion_tokens: longest } = this.#fields;
    const stops = stopsOf(stop.text);
    const isStopWrong = stops.length > MAX_STOPS || stops.some((text) => text.length > MAX_STOP_CHARS);
    const tokens = tokenIdsOf(ids.text);
    // NaN fails the comparison, so it is invalid, too.
    const areTokens = tokens.length <= MAX_STOP_TOKENS && tokens.every((token) => token <= MAX_TOKEN_ID);
    for (const field of Object.values(this.#fields)) field.check("");
    const isTooLong = shortest.value !== null && longest.value !== null && shortest.value > longest.value;
    const isSeed = seed.value === null || Number.isSafeInteger(seed.value);
    if (isStopWrong) stop.check(`Up to ${MAX_STOPS} stop strings of up to ${MAX_STOP_CHARS} characters each.`);
    if (!areTokens) ids.check(`Up to ${MAX_STOP_TOKENS} numbers, separated by commas.`);
    if (!isSeed) seed.check("A whole number, up to 2^53.");
    if (isTooLong) shortest.check("Must not exceed the longest answer.");
  }

  #reset() {
    for (const field of Object.values(this.#fields)) field.text = "";
    this.#check();
    this.#store();
  }

  #store() {
    const values = Object.fromEntries(Object.entries(this.#fields).map(([name, field]) => [name, field.text]));
    try {
      localStorage.setItem(NAME, JSON.stringify(values));
    } catch {
      // Storage is blocked: the settings last until the page is closed.
    }
  }

  #restore() {
    try {
      const values = JSON.parse(localStorage.getItem(NAME) ?? "{}");
      for (const [name, field] of Object.entries(this.#fields)) field.text = values[name] ?? "";
    } catch {
      // Storage is blocked or invalid: keep the defaults.
    }
  }
}

function listed(values) {
  return values.length ? values : null;
}
