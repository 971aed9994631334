import { byId } from "./element.js";
import { notice } from "./notice.js";
import { Refusal } from "./server.js";

const RETRY_MS = 2000;
const NO_KEY = "This server needs a key. Send a message to be asked for it again.";
const NO_MODEL = "This key cannot use any model of this server.";

/** Reads the server's models and version, and waits until it is ready. */
export class Connection {
  #server;
  #startup;
  #key;
  #models;

  /** @param {{server: object, startup: object, key: object, models: object}} parts */
  constructor({ server, startup, key, models }) {
    this.#server = server;
    this.#startup = startup;
    this.#key = key;
    this.#models = models;
  }

  /** Read the models and wait until the engine is ready. On a problem, show a notice. */
  async open() {
    notice("");
    try {
      await this.readModels();
      // The link to the docs cannot carry a key.
      byId("docs").hidden = Boolean(this.#key.value);
      const { version } = await this.#server.version();
      byId("version").textContent = `Tokka ${version}`;
      await this.#startup.untilReady();
      // The context length is known only now.
      await this.readModels();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 401) {
        if (await this.#key.renew(true)) await this.open();
        else notice(NO_KEY);
      } else if (error.code === "unreachable") {
        await this.#startup.untilReady();
        setTimeout(() => void this.open(), RETRY_MS);
      } else notice(error.message);
    }
  }

  /** Read the served models. Throws Refusal. */
  async readModels() {
    const models = await this.#server.models();
    this.#models.show(models);
    if (!models.length) notice(NO_MODEL, { label: "Change the key", act: () => this.changeKey() });
  }

  /** Read the states of the models again. A problem shows with the next message. */
  async look() {
    try {
      await this.readModels();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
  }

  async changeKey() {
    if (await this.#key.renew(false)) await this.open();
  }
}
