import { emptyAnswer } from "./conversation.js";

const PREFIX = "tokka.conversation.";
const LAST = "tokka.last";
const FRESH = "tokka.system";
const MAX_CONVERSATIONS = 100;
// Identifies this tab as a writer. Each page load has a new id, because the former page writes no more.
const TAB = Math.random().toString(36).slice(2);
// Milliseconds after which a silent writer counts as gone. Browsers let a hidden tab save only once a minute.
const SILENT_MS = 70_000;
const BLOCKED = "Conversations are not saved: this browser's storage is blocked for this page.";
const FULL = "This browser's storage is full, so new messages are not saved. Delete old conversations.";
const MADE_ROOM = `This page keeps the newest ${MAX_CONVERSATIONS} conversations. The oldest one was deleted.`;

/**
 * The stored conversations of this browser, one per storage key. Without storage they live as long as the page.
 *
 * While a tab writes a conversation, no other tab may write it: each save stores the writing tab and the time.
 */
export class History {
  #storage;
  #kept = new Map();
  #claimed = new Set();
  /** The problem of the last save, or "". */
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

  /** Read another tab's change under this name, or all names without one. Conversations claimed here stay unchanged. */
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

  /** Return the conversation that was open last; null without one, or if another tab is writing it. */
  last() {
    const id = this.#storage?.getItem(LAST);
    return this.elsewhereMs(id) ? null : this.get(id);
  }

  get(id) {
    return this.#kept.get(id) ?? null;
  }

  /** Return the milliseconds until another tab's claim on this conversation expires; 0 without a claim. */
  elsewhereMs(id) {
    const writer = this.#kept.get(id)?.writer;
    if (!writer || writer.tab === TAB) return 0;
    return Math.max(0, writer.atMs + SILENT_MS - Date.now());
  }

  /** Save the conversation and set `problem`. */
  save(conversation) {
    conversation.writer = this.#claimed.has(conversation.id) ? { tab: TAB, atMs: Date.now() } : null;
    this.#kept.set(conversation.id, conversation);
    const oldest = this.list().slice(MAX_CONVERSATIONS);
    for (const { id } of oldest) this.remove(id);
    if (!this.#storage) return;
    const isStored = this.#write(() => this.#storage.setItem(PREFIX + conversation.id, JSON.stringify(conversation)));
    this.problem = isStored ? (oldest.length ? MADE_ROOM : "") : FULL;
  }

  /** Claim the conversation for this tab until `release`. */
  claim(conversation) {
    this.#claimed.add(conversation.id);
    this.save(conversation);
  }

  /**
   * Save the present state of a claimed conversation.
   * @returns {boolean} false if this tab has lost it: it was removed, or another tab began to write it while this tab
   *   was asleep, and the other tab's version stays
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

  /** Save the conversation and end this tab's claim. */
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

  /** The system prompt of a conversation without turns. The conversation is not stored yet, so it stays in this tab. */
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

  /** Save nothing from now on. */
  close() {
    this.#storage = null;
  }

  /** @returns {boolean} whether the write succeeded */
  #write(write) {
    try {
      write();
      return true;
    } catch {
      return false;
    }
  }
}

/** Return a stored conversation, or null if it is invalid: other code may have written there. */
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
