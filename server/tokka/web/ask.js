import { byId } from "./element.js";

/** The page's only dialog: asks for a confirmation or a text. */
export class Ask {
  #dialog = byId("ask");
  #input = byId("ask-input");
  #wrong = byId("ask-wrong");

  /** Ask for yes or no. @returns {Promise<boolean>} */
  async confirm({ title, text, yes }) {
    this.#input.hidden = true;
    return (await this.#open({ title, text, yes, label: "", check: () => "" })) !== null;
  }

  /**
   * Ask for a text.
   * @param {{title: string, text: string, label: string, yes: string, value?: string, isSecret?: boolean,
   *   wrong?: string, check?: (text: string) => string}} question `check` returns an error for the text, or ""
   * @returns {Promise<string | null>} null if the reader cancels
   */
  async text({ value = "", isSecret = false, wrong = "", check = () => "", ...question }) {
    this.#input.hidden = false;
    this.#input.type = isSecret ? "password" : "text";
    this.#input.value = value;
    return this.#open({ ...question, wrong, check });
  }

  #open({ title, text, label, yes, wrong = "", check }) {
    byId("ask-title").textContent = title;
    byId("ask-text").textContent = text;
    byId("ask-label").textContent = label;
    byId("ask-yes").textContent = yes;
    this.#wrong.textContent = wrong;
    this.#dialog.showModal();
    if (!this.#input.hidden) this.#input.select();
    return new Promise((resolve) => {
      let answer = null;
      const ended = new AbortController();
      const { signal } = ended;
      const form = this.#dialog.querySelector("form");
      const agree = (event) => {
        event.preventDefault();
        this.#wrong.textContent = check(this.#input.value);
        if (this.#wrong.textContent) {
          this.#input.focus();
          return;
        }
        answer = this.#input.value;
        this.#dialog.close();
      };
      form.addEventListener("submit", agree, { signal });
      byId("ask-no").addEventListener("click", () => this.#dialog.close(), { signal });
      // Runs also if Escape closed the dialog.
      const settle = () => {
        ended.abort();
        this.#input.value = "";
        resolve(answer);
      };
      this.#dialog.addEventListener("close", settle, { signal });
    });
  }
}
