import { byId } from "./element.js";

const NAME = "tokka.draft";

/** The box a message is written in, with its button: send, or stop. */
export class Composer {
  #form = byId("composer");
  #draft = byId("draft");
  #send = byId("send");
  #stop = byId("stop");
  #isBusy = false;

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
      // Enter also ends what an input method composes.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    document.addEventListener("keydown", (event) => {
      // One that closes a dialog or a panel is spent.
      const isSpent = event.defaultPrevented || document.querySelector("dialog[open]");
      if (event.key === "Escape" && this.#isBusy && !isSpent) onStop();
    });
    window.addEventListener("resize", () => this.#fit());
    this.#restore();
  }

  get text() {
    return this.#draft.value;
  }

  set text(text) {
    this.#draft.value = text;
    this.#fit();
  }

  /** Show what a message is for: an answer, or with a base model the rest of a text. */
  set isBase(isBase) {
    this.#draft.placeholder = isBase ? "Write the beginning of a text" : "Write a message";
  }

  /** While an answer is written there is a button to stop it. */
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

  #fit() {
    this.#draft.style.height = "auto";
    this.#draft.style.height = `${this.#draft.scrollHeight}px`;
    this.#send.disabled = !this.text.trim();
    try {
      sessionStorage.setItem(NAME, this.text);
    } catch {
      // Then a reload loses it.
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
