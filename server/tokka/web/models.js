import { byId, element } from "./element.js";

const NAME = "tokka.model";

/** The served models: the chosen one, its state and context length, and whether it is a base model. */
export class Models {
  #select = byId("model");
  #models = new Map();
  #bases = new Set();

  /**
   * @param {() => void} onChange called when the choice, or the knowledge about it, changes
   * @param {() => void} onLook called when the reader turns to the list
   */
  constructor(onChange, onLook) {
    this.onChange = onChange;
    this.#select.addEventListener("focus", onLook);
    this.#select.addEventListener("change", () => {
      try {
        localStorage.setItem(NAME, this.chosen);
      } catch {
        // Storage is blocked: the reader chooses again next time.
      }
      onChange();
    });
  }

  /** @param {{id: string, max_model_len: number | null, state?: string}[]} models */
  show(models) {
    let wanted = this.chosen;
    try {
      wanted ||= localStorage.getItem(NAME) ?? "";
    } catch {
      // Storage is blocked, see above.
    }
    this.#models = new Map(models.map((model) => [model.id, model]));
    const options = [...this.#select.options];
    // Keep the options of an open list.
    if (options.length === models.length && options.every(({ value }) => this.#models.has(value))) {
      for (const option of options) option.textContent = this.#label(option.value);
    } else {
      this.#select.replaceChildren(...models.map(({ id }) => element("option", { value: id }, this.#label(id))));
    }
    this.#select.value = this.#models.has(wanted) ? wanted : (models[0]?.id ?? "");
    this.onChange();
  }

  get chosen() {
    return this.#select.value;
  }

  /** Context length in tokens, or null while unknown. */
  get length() {
    return this.#models.get(this.chosen)?.max_model_len ?? null;
  }

  serves(model) {
    return this.#models.has(model);
  }

  /** Whether the model would answer now, as far as this page knows. Other servers do not tell. */
  isReady(model) {
    return ["ready", undefined].includes(this.#models.get(model)?.state);
  }

  /** Whether a message to the chosen model starts it. */
  get isAsleep() {
    return this.#models.get(this.chosen)?.state === "asleep";
  }

  /** Whether the chosen model is a base model, which only continues texts. */
  get isBase() {
    return this.#bases.has(this.chosen);
  }

  /** Note that this model has no chat template. */
  noteBase(model) {
    if (this.#bases.has(model)) return;
    this.#bases.add(model);
    this.onChange();
  }

  /** Return the name, among several models with the state. */
  #label(id) {
    const { state } = this.#models.get(id);
    return state && this.#models.size > 1 ? `${id} (${state})` : id;
  }
}
