import { byId } from "./element.js";

/** The side panels. They are beside the conversation if there is room, otherwise over it. */
export class Drawers {
  #main = document.querySelector("main");
  #wide = { sidebar: matchMedia("(min-width: 800px)"), settings: matchMedia("(min-width: 1180px)") };

  constructor() {
    for (const [name, wide] of Object.entries(this.#wide)) {
      this.#set(name, wide.matches);
      wide.addEventListener("change", () => this.#set(name, wide.matches));
    }
    document.addEventListener("click", (event) => {
      const { opens, closes } = event.target.closest("[data-opens], [data-closes]")?.dataset ?? {};
      if (opens) this.#toggle(opens);
      else if (closes) this.close(closes);
      else if (!event.target.closest(".drawer, dialog")) this.closeOverlays();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
      if (this.closeOverlays()) event.preventDefault();
    });
  }

  open(name) {
    this.#set(name, true);
  }

  /** Close a panel and focus the button that opens it. */
  close(name) {
    this.#set(name, false);
    opener(name).focus();
  }

  /** Close the panels that cover the conversation. @returns {boolean} whether there were any */
  closeOverlays() {
    const covering = Object.keys(this.#wide).filter((name) => this.#covers(name));
    for (const name of covering) this.close(name);
    return covering.length > 0;
  }

  #toggle(name) {
    this.#set(name, !isOpen(name));
    if (this.#covers(name)) byId(name).querySelector("button").focus();
  }

  #set(name, open) {
    byId("page").classList.toggle(`with-${name}`, open);
    opener(name).setAttribute("aria-expanded", String(open));
    // Hide covered content from keys and screen readers.
    this.#main.inert = Object.keys(this.#wide).some((other) => this.#covers(other));
  }

  #covers(name) {
    return isOpen(name) && !this.#wide[name].matches;
  }
}

function isOpen(name) {
  return byId("page").classList.contains(`with-${name}`);
}

function opener(name) {
  return document.querySelector(`[data-opens=${name}]`);
}
