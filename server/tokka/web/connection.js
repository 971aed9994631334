import { byId } from "./element.js";
import { notice } from "./notice.js";
import { Refusal } from "./server.js";

const RETRY_MS = 2000;
const NO_KEY = "Without a key this server does not answer. Send a message to be asked again.";
const NO_MODEL = "This key may use none of the models that are served here.";

/** What this page knows of its server: which models it serves, its version, and whether it is ready. */
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

  /** Learn which models there are, and wait until the engine is ready. A notice says what is in the way. */
  async open() {
    notice("");
    try {
      await this.readModels();
      // A link carries no key.
      byId("docs").hidden = Boolean(this.#key.value);
      const { version } = await this.#server.version();
      byId("version").textContent = `Tokka ${version}`;
      await this.#startup.untilReady();
      // Only now is the length of the context known.
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

  /** Learn which models there are now. Throws Refusal. */
  async readModels() {
    const models = await this.#server.models();
    this.#models.show(models);
    if (!models.length) notice(NO_MODEL, { label: "Change the key", act: () => this.changeKey() });
  }

  async changeKey() {
    if (await this.#key.renew(false)) await this.open();
  }
}
