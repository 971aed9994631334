import { titleOf } from "./conversation.js";
import { byId, element, icon } from "./element.js";

/** The list of conversations. */
export class Sidebar {
  #list = byId("conversations");
  #shown = "";

  /** @param {Record<"onOpen" | "onRename" | "onRemove", (id: string) => void>} listener */
  constructor(listener) {
    this.listener = listener;
  }

  /** @param {object[]} conversations  @param {string} openId */
  show(conversations, openId) {
    const shown = JSON.stringify([openId, conversations.map((one) => [one.id, titleOf(one)])]);
    // Keep the rows: a row replaced between press and release gets no click.
    if (shown === this.#shown) return;
    this.#shown = shown;
    const place = this.#focused();
    this.#list.replaceChildren(...conversations.map((one) => this.#row(one, one.id === openId)));
    // Restore the focus in the new list.
    if (place) this.#list.querySelector(`[data-id="${place.id}"] [data-does=${place.does}]`)?.focus();
  }

  #focused() {
    const button = document.activeElement?.closest("#conversations [data-does]");
    return button && { id: button.closest("li").dataset.id, does: button.dataset.does };
  }

  #row(conversation, isOpen) {
    const { onOpen, onRename, onRemove } = this.listener;
    const title = titleOf(conversation);
    const open = element("button", { type: "button", class: "title", "data-does": "open", title }, title);
    if (isOpen) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => onOpen(conversation.id));
    return element(
      "li",
      { "data-id": conversation.id },
      open,
      tool("rename", `Rename ${title}`, () => onRename(conversation.id)),
      tool("delete", `Delete ${title}`, () => onRemove(conversation.id)),
    );
  }
}

function tool(name, label, onclick) {
  const attributes = { type: "button", class: "quiet tool", "data-does": name, "aria-label": label, title: label };
  return element("button", { ...attributes, onclick }, icon(name));
}
