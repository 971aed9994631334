import { emptyAnswer } from "./conversation.js";

const PREFIX = "tokka.conversation.";
const LAST = "tokka.last";
const FRESH = "tokka.system";
const MAX_CONVERSATIONS = 100;
// Of this page for as long as it is not left: what is written when it goes is written no more.
const TAB = Math.random().toString(36).slice(2);
// A browser lets a hidden tab save once a minute only.
const SILENT_MS = 70_000;
const BLOCKED = "This browser keeps no history here: its storage is blocked for this page.";
const FULL = "This browser's storage is full: what you write now is not kept. Delete old conversations.";
const MADE_ROOM = `The newest ${MAX_CONVERSATIONS} conversations are kept: the oldest one made room.`;

/**
 * The conversations this browser keeps, each under its own name. Without storage they live as long as the page.
 *
 * While a tab writes a conversation it is that tab's alone: each time it is saved it says who writes, and when.
 */
export class History {
  #storage;
  #kept = new Map();
  #claimed = new Set();
  /** What came in the way of the last that was saved. */
  problem = "";

  constructor() {
    try {
      this.#storage = window.localStorage;
      this.#storage.getItem(LAST);
    } catch {
      this.#storage = null;
      this.problem = BLOCKED;
    }
    this.refresh();
  }

  /** Read what another tab has written under this name, or without one everything. What is written here stays. */
  refresh(name = null) {
    const names = name === null ? Object.keys(this.#storage ?? {}) : [name];
    for (const one of names.filter((text) => text.startsWith(PREFIX))) {
      const id = one.slice(PREFIX.length);
      if (this.#claimed.has(id)) continue;
      const conversation = sound(this.#storage.getItem(one));
      if (conversation) this.#kept.set(conversation.id, conversation);
      else this.#kept.delete(id);
    }
  }

  /** @returns {object[]} newest first */
  list() {
    return [...this.#kept.values()].sort((one, other) => other.updatedMs - one.updatedMs);
  }

  /** Return the conversation this browser had open last; null if there is none, or another tab writes it. */
  last() {
    const id = this.#storage?.getItem(LAST);
    return this.elsewhereMs(id) ? null : this.get(id);
  }

  get(id) {
    return this.#kept.get(id) ?? null;
  }

  /** Return for how long, unless it is heard of again, another tab counts as writing this conversation; else 0. */
  elsewhereMs(id) {
    const writer = this.#kept.get(id)?.writer;
    if (!writer || writer.tab === TAB) return 0;
    return Math.max(0, writer.atMs + SILENT_MS - Date.now());
  }

  /** Keep the conversation. `problem` says what came in the way. */
  save(conversation) {
    conversation.writer = this.#claimed.has(conversation.id) ? { tab: TAB, atMs: Date.now() } : null;
    this.#kept.set(conversation.id, conversation);
    const oldest = this.list().slice(MAX_CONVERSATIONS);
    for (const { id } of oldest) this.remove(id);
    if (!this.#storage) return;
    const isStored = this.#write(() => this.#storage.setItem(PREFIX + conversation.id, JSON.stringify(conversation)));
    this.problem = isStored ? (oldest.length ? MADE_ROOM : "") : FULL;
  }

  /** This tab writes the conversation, until it is released. */
  claim(conversation) {
    this.#claimed.add(conversation.id);
    this.save(conversation);
  }

  /**
   * Save it as far as it has come.
   * @returns {boolean} false if it is this tab's no more: it was removed, or while this tab was asleep another began
   *   to write it, and theirs stays
   */
  saveClaimed(conversation) {
    const { id, updatedMs } = conversation;
    if (!this.#kept.has(id)) return false;
    const isTaken = sound(this.#storage?.getItem(PREFIX + id) ?? null)?.updatedMs > updatedMs;
    if (isTaken) {
      this.#claimed.delete(id);
      this.refresh(PREFIX + id);
    } else this.save(conversation);
    return !isTaken;
  }

  /** It is written no more. */
  release(conversation) {
    this.#claimed.delete(conversation.id);
    this.saveClaimed(conversation);
  }

  /** Remember which conversation is open. */
  open(id) {
    this.#write(() => this.#storage?.setItem(LAST, id));
  }

  remove(id) {
    this.#kept.delete(id);
    this.#write(() => this.#storage?.removeItem(PREFIX + id));
  }

  /** The system prompt of a conversation without turns, which is not kept yet: it stays in this tab. */
  get fresh() {
    try {
      return sessionStorage.getItem(FRESH) ?? "";
    } catch {
      return "";
    }
  }

  set fresh(system) {
    this.#write(() => sessionStorage.setItem(FRESH, system));
  }

  /** Keep nothing from now on. */
  close() {
    this.#storage = null;
  }

  /** @returns {boolean} whether it could be written */
  #write(write) {
    try {
      write();
      return true;
    } catch {
      return false;
    }
  }
}

/** Return a stored conversation if it has the form of one: anything may have been written there. */
function sound(json) {
  try {
    const { id, title, isNamed, updatedMs, system, turns, writer } = JSON.parse(json);
    const isText = (...values) => values.every((value) => typeof value === "string");
    if (!isText(id, title, system) || typeof updatedMs !== "number" || !Array.isArray(turns)) return null;
    if (!turns.every((turn) => isText(turn.role, turn.text))) return null;
    const whole = turns.map((turn) => (turn.role === "user" ? turn : wholeAnswer(turn)));
    const isWritten = isText(writer?.tab) && typeof writer.atMs === "number";
    const kept = { id, title, isNamed: Boolean(isNamed), updatedMs, system, turns: whole };
    return { ...kept, writer: isWritten ? writer : null };
  } catch {
    return null;
  }
}

function wholeAnswer(turn) {
  return { ...emptyAnswer(), ...turn, former: typeof turn.former?.text === "string" ? wholeAnswer(turn.former) : null };
}
