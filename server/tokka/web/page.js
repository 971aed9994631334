import { announce } from "./announcer.js";
import { Answer } from "./answer.js";
import { Ask } from "./ask.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import {
  addAnswer,
  addQuestion,
  newConversation,
  removeLast,
  renewAnswer,
  settleAnswer,
  titleOf,
} from "./conversation.js";
import { Counter } from "./counter.js";
import { Drawers } from "./drawers.js";
import { byId } from "./element.js";
import { ending, isFailure } from "./ending.js";
import { Greeting } from "./greeting.js";
import { History } from "./history.js";
import { Key } from "./key.js";
import { Models } from "./models.js";
import { notice, withdraw } from "./notice.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Startup } from "./startup.js";
import { Transcript } from "./transcript.js";

const SAVE_EVERY_MS = 1000;
const ELSEWHERE = "This conversation is being written in another tab. Wait until it is done, or start a new one.";

/** The page: holds the open conversation and handles the reader's actions. */
class Page {
  #ask = new Ask();
  #drawers = new Drawers();
  #history = new History();
  #key = new Key(this.#ask, byId("change-key"));
  #server = new Server(this.#key);
  #startup = new Startup(this.#server, () => this.#greet());
  #models = new Models(
    () => this.#refresh(),
    () => this.#connection.look(),
  );
  #connection = new Connection({
    server: this.#server,
    startup: this.#startup,
    key: this.#key,
    models: this.#models,
  });
  #counter = new Counter(this.#server, this.#models);
  #greeting = new Greeting((text) => this.#send(text));
  #conversation = this.#history.last() ?? newConversation(this.#history.fresh);
  // Timer: fires when the tab that writes this conversation has been silent for too long.
  #listening = 0;
  // Aborts the answer in progress; null without one.
  #writing = null;
  #settings = new Settings((system) => this.#setSystem(system));
  #answer = new Answer({
    server: this.#server,
    startup: this.#startup,
    key: this.#key,
    models: this.#models,
    connection: this.#connection,
    settings: this.#settings,
  });
  #composer = new Composer({
    onSend: (text) => this.#send(text),
    onStop: () => this.#stop(),
    onInput: () => this.#count(),
  });
  #transcript = new Transcript({
    regenerate: () => this.#regenerate(),
    resume: () => this.#write(),
    remove: () => this.#removeTurn(),
  });
  #sidebar = new Sidebar({
    onOpen: (id) => this.#open(this.#history.get(id)),
    onRename: (id) => this.#rename(id),
    onRemove: (id) => this.#remove(id),
  });

  async run() {
    byId("new").addEventListener("click", () => this.#open(newConversation(this.#conversation.system)));
    byId("change-key").addEventListener("click", () => this.#connection.changeKey());
    window.addEventListener("pagehide", () => this.#leave());
    // A page restored from the browser's back/forward cache is out of date.
    window.addEventListener("pageshow", (event) => event.persisted && location.reload());
    window.addEventListener("storage", ({ key }) => this.#readOtherTab(key));
    this.#show();
    this.#composer.focus();
    await this.#connection.open();
  }

  /** Save the partial answer. The browser then aborts its request, which must not count as an ending. */
  #leave() {
    if (!this.#writing) return;
    this.#history.release(this.#conversation);
    this.#history.close();
  }

  #show() {
    this.#transcript.clear();
    this.#update();
    this.#transcript.follow();
  }

  /** Show the conversation. While another tab writes it, this tab only reads, until the other is done or silent. */
  #update() {
    const elsewhereMs = this.#history.elsewhereMs(this.#conversation.id);
    clearTimeout(this.#listening);
    if (elsewhereMs) this.#listening = setTimeout(() => this.#update(), elsewhereMs);
    else {
      settleAnswer(this.#conversation);
      withdraw(ELSEWHERE);
    }
    this.#settings.system = this.#conversation.system;
    this.#settings.isElsewhere = elsewhereMs > 0;
    this.#transcript.update(this.#conversation, elsewhereMs > 0);
    this.#refresh();
  }

  #isElsewhere(id = this.#conversation.id) {
    return this.#history.elsewhereMs(id) > 0;
  }

  /** Update the parts that depend on the model or on the list of conversations. */
  #refresh() {
    this.#composer.isBase = this.#settings.isBase = this.#models.isBase;
    document.title = `${titleOf(this.#conversation)} – Tokka`;
    this.#sidebar.show(this.#history.list(), this.#conversation.id);
    this.#greet();
    this.#count();
    if (this.#history.problem) notice(this.#history.problem);
  }

  #greet() {
    const isBegun = this.#conversation.turns.length > 0;
    const canAnswer = this.#models.length || this.#models.isAsleep;
    if (isBegun || this.#startup.isShown || !canAnswer) this.#greeting.hide();
    else this.#greeting.show(this.#models);
  }

  #count() {
    // While this tab generates an answer, the server counts.
    if (this.#writing) return;
    // Counting would start a sleeping model.
    if (this.#isElsewhere() || !this.#models.isReady(this.#models.chosen)) this.#counter.clear();
    // The context length is known once the model has been ready.
    else if (this.#models.length) this.#counter.refresh(this.#conversation, this.#composer.text);
  }

  async #send(text) {
    // The reader has declined the key dialog, or the server has not answered yet.
    if (!this.#models.chosen) await this.#connection.open();
    if (!this.#models.chosen || this.#isHeldUp()) return;
    addQuestion(this.#conversation, text);
    addAnswer(this.#conversation, this.#models.chosen, this.#models.isBase);
    this.#composer.sent(text);
    this.#history.fresh = "";
    this.#composer.focus();
    void this.#write();
  }

  #regenerate() {
    if (this.#isHeldUp()) return;
    renewAnswer(this.#conversation, this.#models.chosen, this.#models.isBase);
    this.#composer.focus();
    void this.#write();
  }

  /** Generate the last answer, from its beginning or from its present end. */
  async #write() {
    if (this.#isHeldUp()) return;
    const conversation = this.#conversation;
    const writing = new AbortController();
    this.#writing = writing;
    this.#composer.isBusy = true;
    this.#transcript.update(conversation);
    const view = this.#transcript.begin();
    conversation.updatedMs = Date.now();
    notice("");
    this.#history.claim(conversation);
    this.#history.open(conversation.id);
    this.#refresh();
    const saving = setInterval(() => this.#history.saveClaimed(conversation) || writing.abort(), SAVE_EVERY_MS);
    try {
      await this.#answer.write(conversation, writing.signal, {
        onText: () => this.#writing === writing && this.#transcript.grow(),
        onUsage: (usage) => this.#writing === writing && this.#counter.follow(usage),
        onStart: (message) => this.#writing === writing && this.#showStart(view, message),
        onWait: (message, seconds, goOn) => this.#writing === writing && view.wait(message, seconds, goOn),
      });
    } finally {
      clearInterval(saving);
      this.#finish(conversation, writing);
    }
  }

  #showStart(view, message) {
    view.begin(message);
    announce(message);
  }

  #finish(conversation, writing) {
    const turn = conversation.turns.at(-1);
    const isFormerBack = settleAnswer(conversation);
    this.#history.release(conversation);
    if (this.#writing === writing) this.#rest();
    // The reader may have opened another conversation, or returned from one.
    if (this.#writing || this.#conversation.id !== conversation.id) return;
    this.#conversation = this.#history.get(conversation.id) ?? conversation;
    this.#update();
    if (isFormerBack && isFailure(turn)) notice(`${ending(turn)} The earlier answer is kept.`);
    announce(`${turn.text} ${ending(turn)}`);
  }

  #stop() {
    this.#writing?.abort();
  }

  /** End the busy state after an answer. */
  #rest() {
    this.#writing = null;
    this.#composer.isBusy = false;
  }

  /** Return whether sending is blocked now, and show the reason. */
  #isHeldUp() {
    if (this.#writing) return true;
    if (this.#isElsewhere()) {
      notice(ELSEWHERE);
      return true;
    }
    if (!this.#settings.isWrong) return false;
    this.#drawers.open("settings");
    this.#settings.showWrong();
    return true;
  }

  #removeTurn() {
    this.#composer.putBack(removeLast(this.#conversation));
    this.#history.save(this.#conversation);
    this.#update();
    this.#composer.focus();
    announce("The last question and its answer were removed");
  }

  #setSystem(system) {
    this.#conversation.system = system;
    if (this.#conversation.turns.length) this.#history.save(this.#conversation);
    else this.#history.fresh = system;
    this.#count();
  }

  #open(conversation) {
    if (conversation.id !== this.#conversation.id) {
      this.#stop();
      this.#rest();
      this.#conversation = conversation;
      this.#history.open(conversation.id);
      if (!conversation.turns.length) this.#history.fresh = conversation.system;
      this.#show();
    }
    this.#drawers.closeOverlays();
    this.#composer.focus();
  }

  async #rename(id) {
    if (this.#isElsewhere(id)) return notice(ELSEWHERE);
    const title = await this.#ask.text({
      title: "Rename",
      text: "The name of the conversation in the list:",
      label: "Name",
      value: titleOf(this.#history.get(id)),
      yes: "Rename",
      check: (text) => (text.trim() ? "" : "Enter at least one character."),
    });
    // Read the conversation again: another tab may have changed or removed it.
    const conversation = this.#history.get(id);
    if (title === null || !conversation) return;
    if (this.#isElsewhere(id)) return notice(ELSEWHERE);
    Object.assign(conversation, { title: title.trim().slice(0, 200), isNamed: true });
    this.#history.save(conversation);
    this.#refresh();
  }

  async #remove(id) {
    if (this.#isElsewhere(id)) return notice(ELSEWHERE);
    const text = `“${titleOf(this.#history.get(id))}” will be deleted from this browser permanently.`;
    if (!(await this.#ask.confirm({ title: "Delete this conversation?", text, yes: "Delete" }))) return;
    if (this.#isElsewhere(id)) return notice(ELSEWHERE);
    this.#history.remove(id);
    if (id === this.#conversation.id) this.#open(newConversation());
    else this.#refresh();
    byId("new").focus();
  }

  /** Handle a change that another tab has stored. */
  #readOtherTab(name) {
    this.#history.refresh(name);
    const theirs = this.#history.get(this.#conversation.id);
    if (!theirs || theirs === this.#conversation) return this.#refresh();
    this.#conversation = theirs;
    this.#update();
  }
}

await new Page().run();
