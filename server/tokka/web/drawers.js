import { byId } from "./element.js";

const WIDE = { sidebar: "(min-width: 800px)", settings: "(min-width: 1180px)" };

/** The panels at both sides: beside the conversation where there is room, over it where there is not. */
export class Drawers {
  constructor() {
    for (const name of Object.keys(WIDE)) {
      const wide = matchMedia(WIDE[name]);
      this.#set(name, wide.matches);
      wide.addEventListener("change", () => this.#set(name, wide.matches));
    }
    document.addEventListener("click", (event) => {
      const button = event.target.closest("[data-opens], [data-closes]");
      if (button?.dataset.opens) this.#toggle(button.dataset.opens);
      else if (button) this.close(button.dataset.closes);
      else if (!event.target.closest(".drawer, dialog")) this.closeOverlays();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.closeOverlays();
    });
  }

  open(name) {
    this.#set(name, true);
  }

  /** Close it, and give the focus back to what opens it. */
  close(name) {
    this.#set(name, false);
    opener(name).focus();
  }

  /** Close what covers the conversation. */
  closeOverlays() {
    for (const [name, query] of Object.entries(WIDE)) {
      if (byId("page").classList.contains(`with-${name}`) && !matchMedia(query).matches) this.close(name);
    }
  }

  #toggle(name) {
    const isOpen = byId("page").classList.contains(`with-${name}`);
    this.#set(name, !isOpen);
    if (!isOpen && !matchMedia(WIDE[name]).matches) byId(name).querySelector("button, textarea").focus();
  }

  #set(name, isOpen) {
    byId("page").classList.toggle(`with-${name}`, isOpen);
    opener(name).setAttribute("aria-expanded", String(isOpen));
  }
}

function opener(name) {
  return document.querySelector(`[data-opens=${name}]`);
}
