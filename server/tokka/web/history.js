const PREFIX = "tokka.conversation.";
const LAST = "tokka.last";
const MAX_CONVERSATIONS = 100;

/** The conversations this browser keeps, each under its own name. Without storage they live as long as the page. */
export class History {
  #storage;
  #kept = new Map();
  problem = "";

  constructor() {
    try {
      this.#storage = window.localStorage;
      this.#storage.getItem(LAST);
    } catch {
      this.#storage = null;
      this.problem = "This browser keeps no history here: its storage is blocked for this page.";
    }
    this.refresh();
  }

  /** Read what another tab has written under this name, or without one everything. */
  refresh(name = null) {
    const names = name === null ? Object.keys(this.#storage ?? {}) : [name];
    for (const one of names.filter((text) => text.startsWith(PREFIX))) {
      const conversation = sound(this.#storage.getItem(one));
      if (conversation) this.#kept.set(conversation.id, conversation);
      else this.#kept.delete(one.slice(PREFIX.length));
    }
  }

  /** Tell whether this is the name that the conversation is stored under. */
  isNameOf(name, conversation) {
    return name === PREFIX + conversation.id;
  }

  /** @returns {object[]} newest first */
  list() {
    return [...this.#kept.values()].sort((one, other) => other.updatedMs - one.updatedMs);
  }

  /** Return the conversation this browser had open last, or null. */
  last() {
    return this.#kept.get(this.#storage?.getItem(LAST)) ?? null;
  }

  get(id) {
    return this.#kept.get(id) ?? null;
  }

  /** Keep the conversation. `problem` says what came in the way. */
  save(conversation) {
    this.#kept.set(conversation.id, conversation);
    this.#write(() => this.#storage.setItem(PREFIX + conversation.id, JSON.stringify(conversation)));
    for (const { id } of this.list().slice(MAX_CONVERSATIONS)) {
      this.remove(id);
      this.problem = `The newest ${MAX_CONVERSATIONS} conversations are kept: the oldest one made room.`;
    }
  }

  /** Remember which conversation is open. */
  open(id) {
    this.#write(() => this.#storage.setItem(LAST, id));
  }

  remove(id) {
    this.#kept.delete(id);
    this.#write(() => this.#storage.removeItem(PREFIX + id));
  }

  /** Keep nothing from now on. */
  close() {
    this.#storage = null;
  }

  #write(write) {
    if (!this.#storage) return;
    try {
      write();
      this.problem = "";
    } catch {
      this.problem = "This browser's storage is full: what you write now is not kept. Delete old conversations.";
    }
  }
}

/** Return a stored conversation if it has the form of one: anything may have been written there. */
function sound(json) {
  try {
    const { id, title, isNamed, updatedMs, system, turns } = JSON.parse(json);
    const isText = (...values) => values.every((value) => typeof value === "string");
    if (!isText(id, title, system) || typeof updatedMs !== "number" || !Array.isArray(turns)) return null;
    if (!turns.every((turn) => isText(turn.role, turn.text))) return null;
    return { id, title, isNamed: Boolean(isNamed), updatedMs, system, turns };
  } catch {
    return null;
  }
}
