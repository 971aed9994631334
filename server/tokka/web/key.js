const NAME = "tokka.key";
const SENDABLE = /^[!-~]{1,512}$/;
const NOT_SENDABLE = "A key has up to 512 letters, digits and signs, and no spaces.";
const REFUSED = "The server refused this key. Check it, or ask whoever runs the server for one.";

/** The API key: kept for this tab alone, and asked for when the server wants one. */
export class Key {
  #ask;
  #button;
  #asking = null;
  value = "";

  /**
   * @param {import("./ask.js").Ask} ask
   * @param {HTMLButtonElement} button changes the key; shown once there is one
   */
  constructor(ask, button) {
    this.#ask = ask;
    this.#button = button;
    try {
      this.value = sessionStorage.getItem(NAME) ?? "";
    } catch {
      // Blocked: then it is kept until the page is left.
    }
    button.hidden = !this.value;
  }

  /**
   * Ask for a key, once however many callers need one.
   * @param {boolean} refused the server did not take the present one
   * @returns {Promise<boolean>} whether there is a new one
   */
  async renew(refused) {
    this.#asking ??= this.#renew(refused).finally(() => (this.#asking = null));
    return this.#asking;
  }

  async #renew(refused) {
    const given = await this.#ask.text({
      title: "This server wants a key",
      text: "Enter the one you were given. It stays in this tab and is gone when you close it.",
      label: "API key",
      yes: "Use this key",
      isSecret: true,
      wrong: refused && this.value ? REFUSED : "",
      check: (text) => (SENDABLE.test(text.trim()) ? "" : NOT_SENDABLE),
    });
    if (given === null) return false;
    this.value = given.trim();
    this.#button.hidden = false;
    try {
      sessionStorage.setItem(NAME, this.value);
    } catch {
      // See above.
    }
    return true;
  }
}
