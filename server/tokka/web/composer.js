import { byId } from "./element.js";

const NAME = "tokka.draft";

/** The message box with its button: send or stop. */
export class Composer {
  #form = byId("composer");
  #draft = byId("draft");
  #send = byId("send");
  #stop = byId("stop");
  #isBusy = false;
  // A touch keyboard cannot hold Shift, so there Enter starts a new line, and only the button sends.
  #touch = matchMedia("(pointer: coarse)");

  /** @param {{onSend: (text: string) => void, onStop: () => void, onInput: () => void}} listener */
  constructor({ onSend, onStop, onInput }) {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.#isBusy && this.text.trim()) onSend(this.text);
    });
    this.#stop.addEventListener("click", onStop);
    this.#draft.addEventListener("input", () => {
      this.#fit();
      onInput();
    });
    this.#draft.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || this.#touch.matches || isComposing(event)) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    document.addEventListener("keydown", (event) => {
      // Ignore an Escape that closes a dialog or a panel.
      const isSpent = event.defaultPrevented || document.querySelector("dialog[open]");
      if (event.key === "Escape" && this.#isBusy && !isSpent) onStop();
    });
    this.#touch.addEventListener("change", () => this.#describe());
    window.addEventListener("resize", () => this.#fit());
    this.#describe();
    this.#restore();
  }

  get text() {
    return this.#draft.value;
  }

  set text(text) {
    this.#draft.value = text;
    this.#fit();
  }

  /** Clear the box after a send, unless it contains another text by now. */
  sent(text) {
    if (this.text === text) this.text = "";
  }

  /** Insert a text before the draft. */
  putBack(text) {
    this.text = [text, this.text].filter((one) => one.trim()).join("\n\n");
  }

  /** Set the placeholder: a base model continues a text instead of answering a message. */
  set isBase(isBase) {
    this.#draft.placeholder = isBase ? "Write the beginning of a text" : "Write a message";
  }

  /** Show the stop button while an answer is being generated, otherwise the send button. */
  set isBusy(isBusy) {
    const hadFocus = [this.#send, this.#stop].includes(document.activeElement);
    this.#isBusy = isBusy;
    this.#send.hidden = isBusy;
    this.#stop.hidden = !isBusy;
    if (hadFocus) this.focus();
    this.#fit();
  }

  focus() {
    this.#draft.focus();
  }

  #describe() {
    this.#draft.setAttribute("aria-describedby", this.#touch.matches ? "" : "keys");
  }

  #fit() {
    this.#draft.style.height = "auto";
    this.#draft.style.height = `${this.#draft.scrollHeight}px`;
    this.#send.disabled = !this.text.trim();
    try {
      sessionStorage.setItem(NAME, this.text);
    } catch {
      // Without storage a reload loses the draft.
    }
  }

  #restore() {
    try {
      this.text = sessionStorage.getItem(NAME) ?? "";
    } catch {
      this.#fit();
    }
  }
}

/** Return whether the key ends an input method's composition. Safari ends it before the event and only sends 229. */
function isComposing({ isComposing, keyCode }) {
  return isComposing || keyCode === 229;
}
