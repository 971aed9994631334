import { byId, element } from "./element.js";

const NAME = "tokka.model";

/** The served models: which one is chosen, how long its context is, and whether it can converse. */
export class Models {
  #select = byId("model");
  #lengths = new Map();
  #bases = new Set();

  /** @param {() => void} onChange another model was chosen, or more is known about it */
  constructor(onChange) {
    this.onChange = onChange;
    this.#select.addEventListener("change", () => {
      try {
        localStorage.setItem(NAME, this.chosen);
      } catch {
        // Then it is chosen again next time.
      }
      onChange();
    });
  }

  /** @param {{id: string, max_model_len: number | null}[]} models */
  show(models) {
    let wanted = this.chosen;
    try {
      wanted ||= localStorage.getItem(NAME) ?? "";
    } catch {
      // See above.
    }
    this.#lengths = new Map(models.map((model) => [model.id, model.max_model_len]));
    this.#select.replaceChildren(...models.map((model) => element("option", { value: model.id }, model.id)));
    this.#select.value = this.#lengths.has(wanted) ? wanted : (models[0]?.id ?? "");
    this.onChange();
  }

  get chosen() {
    return this.#select.value;
  }

  /** Tokens of context, or null while it is not known. */
  get length() {
    return this.#lengths.get(this.chosen) ?? null;
  }

  serves(model) {
    return this.#lengths.has(model);
  }

  /** Whether the chosen one only continues texts. */
  get isBase() {
    return this.#bases.has(this.chosen);
  }

  /** The server said that this model has no chat template. */
  noteBase(model) {
    if (this.#bases.has(model)) return;
    this.#bases.add(model);
    this.onChange();
  }
}
