const NAME = "tokka.key";
const SENDABLE = /^[!-~]{1,512}$/;
const NOT_SENDABLE = "A key has at most 512 letters, digits and symbols, and no spaces.";
const REFUSED = "The server refused this key. Check it, or ask the server's operator for one.";

/** The API key: stored for this tab only, and requested when the server needs one. */
export class Key {
  #ask;
  #button;
  #asking = null;
  value = "";

  /**
   * @param {import("./ask.js").Ask} ask
   * @param {HTMLButtonElement} button changes the key; visible once there is a key
   */
  constructor(ask, button) {
    this.#ask = ask;
    this.#button = button;
    try {
      this.value = sessionStorage.getItem(NAME) ?? "";
    } catch {
      // Storage is blocked: keep the key until the page is closed.
    }
    button.hidden = !this.value;
  }

  /**
   * Ask for a key. Concurrent callers share one dialog.
   * @param {boolean} refused the server refused the present key
   * @returns {Promise<boolean>} whether there is a new key
   */
  async renew(refused) {
    this.#asking ??= this.#renew(refused).finally(() => (this.#asking = null));
    return this.#asking;
  }

  async #renew(refused) {
    const given = await this.#ask.text({
      title: "This server needs a key",
      text: "Enter your API key. It stays in this tab and is deleted when you close it.",
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
      // Storage is blocked, see above.
    }
    return true;
  }
}
