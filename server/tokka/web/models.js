import { byId, element } from "./element.js";

const NAME = "tokka.model";

/** The served models: the chosen one, its context length, and whether it is a base model. */
export class Models {
  #select = byId("model");
  #lengths = new Map();
  #bases = new Set();

  /** @param {() => void} onChange called when the choice, or the knowledge about it, changes */
  constructor(onChange) {
    this.onChange = onChange;
    this.#select.addEventListener("change", () => {
      try {
        localStorage.setItem(NAME, this.chosen);
      } catch {
        // Storage is blocked: the reader chooses again next time.
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
      // Storage is blocked, see above.
    }
    this.#lengths = new Map(models.map((model) => [model.id, model.max_model_len]));
    this.#select.replaceChildren(...models.map((model) => element("option", { value: model.id }, model.id)));
    this.#select.value = this.#lengths.has(wanted) ? wanted : (models[0]?.id ?? "");
    this.onChange();
  }

  get chosen() {
    return this.#select.value;
  }

  /** Context length in tokens, or null while unknown. */
  get length() {
    return this.#lengths.get(this.chosen) ?? null;
  }

  serves(model) {
    return this.#lengths.has(model);
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
}
