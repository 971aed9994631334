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
const ELSEWHERE = "This conversation is being written in another tab: wait until it is done, or begin a new one.";

/** The page: which conversation is open, and what happens when the reader does something. */
class Page {
  #ask = new Ask();
  #drawers = new Drawers();
  #history = new History();
  #key = new Key(this.#ask, byId("change-key"));
  #server = new Server(this.#key);
  #startup = new Startup(this.#server, () => this.#greet());
  #models = new Models(() => this.#refresh());
  #connection = new Connection({
    server: this.#server,
    startup: this.#startup,
    key: this.#key,
    models: this.#models,
  });
  #counter = new Counter(this.#server, this.#models);
  #greeting = new Greeting((text) => this.#send(text));
  #conversation = this.#history.last() ?? newConversation(this.#history.fresh);
  // Ends when the tab that writes this conversation has been silent for long.
  #listening = 0;
  // Aborts the answer that is being written, if there is one.
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
    // Back from where a browser keeps pages whole: what was left there is out of date.
    window.addEventListener("pageshow", (event) => event.persisted && location.reload());
    window.addEventListener("storage", ({ key }) => this.#readOtherTab(key));
    this.#show();
    this.#composer.focus();
    await this.#connection.open();
  }

  /** Keep the answer as far as it came. What the browser then does to its request is no ending of it. */
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

  /** Show what became of the conversation. What another tab writes is only read here, until that is done or silent. */
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

  /** Show what depends on the model or on which conversations there are. */
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
    if (isBegun || this.#startup.isShown || !this.#models.length) this.#greeting.hide();
    else this.#greeting.show(this.#models);
  }

  #count() {
    // While an answer is written here the server counts; its length is known once the model is ready.
    if (this.#writing || !this.#models.length) return;
    if (this.#isElsewhere()) this.#counter.clear();
    else this.#counter.refresh(this.#conversation, this.#composer.text);
  }

  async #send(text) {
    // After the key was declined, or while nobody has answered yet.
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

  /** Have the last answer written, from its beginning or from where it ended. */
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
        onWait: (message, seconds, goOn) => this.#writing === writing && view.wait(message, seconds, goOn),
      });
    } finally {
      clearInterval(saving);
      this.#finish(conversation, writing);
    }
  }

  #finish(conversation, writing) {
    const turn = conversation.turns.at(-1);
    const isFormerBack = settleAnswer(conversation);
    this.#history.release(conversation);
    if (this.#writing === writing) this.#rest();
    // The reader may be elsewhere, or have been and be back.
    if (this.#writing || this.#conversation.id !== conversation.id) return;
    this.#conversation = this.#history.get(conversation.id) ?? conversation;
    this.#update();
    if (isFormerBack && isFailure(turn)) notice(`${ending(turn)} The answer from before is kept.`);
    announce(`${turn.text} ${ending(turn)}`);
  }

  #stop() {
    this.#writing?.abort();
  }

  /** Nothing is being written for the reader any more. */
  #rest() {
    this.#writing = null;
    this.#composer.isBusy = false;
  }

  /** Tell whether nothing can be sent now, and take the reader to the reason. */
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
    announce("The last turn was removed");
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
      text: "The conversation's name in the list:",
      label: "Name",
      value: titleOf(this.#history.get(id)),
      yes: "Rename",
      check: (text) => (text.trim() ? "" : "A name has at least one character."),
    });
    // As it is now: another tab may have written or removed it meanwhile.
    const conversation = this.#history.get(id);
    if (title === null || !conversation) return;
    if (this.#isElsewhere(id)) return notice(ELSEWHERE);
    Object.assign(conversation, { title: title.trim().slice(0, 200), isNamed: true });
    this.#history.save(conversation);
    this.#refresh();
  }

  async #remove(id) {
    if (this.#isElsewhere(id)) return notice(ELSEWHERE);
    const text = `“${titleOf(this.#history.get(id))}” is removed from this browser for good.`;
    if (!(await this.#ask.confirm({ title: "Delete this conversation?", text, yes: "Delete" }))) return;
    if (this.#isElsewhere(id)) return notice(ELSEWHERE);
    this.#history.remove(id);
    if (id === this.#conversation.id) this.#open(newConversation());
    else this.#refresh();
    byId("new").focus();
  }

  /** Another tab has written something. */
  #readOtherTab(name) {
    this.#history.refresh(name);
    const theirs = this.#history.get(this.#conversation.id);
    if (!theirs || theirs === this.#conversation) return this.#refresh();
    this.#conversation = theirs;
    this.#update();
  }
}

await new Page().run();
