import { byId } from "./element.js";

const NAME = "tokka.draft";

/** The box a message is written in, with its button: send, or stop. */
export class Composer {
  #form = byId("composer");
  #draft = byId("draft");
  #send = byId("send");
  #stop = byId("stop");
  #isBusy = false;
  // A keyboard on glass has no Shift to hold: there Enter starts a line, and only the button sends.
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
      // One that closes a dialog or a panel is spent.
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

  /** It was sent. What was written since, or is another text, stays. */
  sent(text) {
    if (this.text === text) this.text = "";
  }

  /** Put a text before what is written. */
  putBack(text) {
    this.text = [text, this.text].filter((one) => one.trim()).join("\n\n");
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

/** Tell whether the key ends what an input method composes: Safari ends composing first, and tells by 229 only. */
function isComposing({ isComposing, keyCode }) {
  return isComposing || keyCode === 229;
}
