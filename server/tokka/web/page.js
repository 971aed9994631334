import { announce } from "./announcer.js";
import { Answer } from "./answer.js";
import { Ask } from "./ask.js";
import { Composer } from "./composer.js";
import { addAnswer, addQuestion, newConversation, removeLast, titleOf } from "./conversation.js";
import { Counter } from "./counter.js";
import { Drawers } from "./drawers.js";
import { byId, element } from "./element.js";
import { ending } from "./ending.js";
import { History } from "./history.js";
import { Key } from "./key.js";
import { Models } from "./models.js";
import { notice } from "./notice.js";
import { Refusal, Server } from "./server.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Startup } from "./startup.js";
import { Transcript } from "./transcript.js";

const SAVE_EVERY_MS = 1000;
const RETRY_MS = 2000;
const SUGGESTIONS = [
  "What is the capital of Finland?",
  "Why is the sky blue?",
  "Give me three tips for learning Finnish.",
];
const BASE_SUGGESTIONS = ["Helsinki is the capital of", "Once upon a time", "The three laws of"];

/** The page: which conversation is open, and what happens when the reader does something. */
class Page {
  #ask = new Ask();
  #drawers = new Drawers();
  #history = new History();
  #key = new Key(this.#ask, byId("change-key"));
  #server = new Server(this.#key);
  #startup = new Startup(this.#server, () => this.#greet());
  #models = new Models(() => this.#refresh());
  #counter = new Counter(this.#server, this.#models);
  #conversation = this.#history.last() ?? newConversation();
  // Aborts the answer that is being written, if there is one.
  #writing = null;
  #settings = new Settings((system) => this.#setSystem(system), () => {});
  #answer = new Answer({
    server: this.#server,
    startup: this.#startup,
    key: this.#key,
    models: this.#models,
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
    onRename: (id) => this.#rename(this.#history.get(id)),
    onRemove: (id) => this.#remove(this.#history.get(id)),
  });

  async run() {
    byId("new").addEventListener("click", () => this.#open(newConversation(this.#conversation.system)));
    byId("change-key").addEventListener("click", async () => (await this.#key.renew(false)) && this.#connect());
    window.addEventListener("pagehide", () => this.#leave());
    // Back from where a browser keeps pages whole: what was left there is out of date.
    window.addEventListener("pageshow", (event) => event.persisted && location.reload());
    window.addEventListener("storage", ({ key }) => this.#readOtherTab(key));
    this.#show();
    this.#composer.focus();
    await this.#connect();
  }

  /** Keep the answer as far as it came. What the browser then does to its request is no ending of it. */
  #leave() {
    if (!this.#writing) return;
    this.#history.save(this.#conversation);
    this.#history.close();
  }

  /** Learn which models there are, and wait until the engine is ready. */
  async #connect() {
    try {
      this.#models.show(await this.#server.models());
      // A link carries no key.
      byId("docs").hidden = Boolean(this.#key.value);
      const { version } = await this.#server.version();
      byId("version").textContent = `Tokka ${version}`;
      await this.#startup.untilReady();
      // Only now is the length of the context known.
      this.#models.show(await this.#server.models());
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (error.status === 401) {
        if (await this.#key.renew(true)) await this.#connect();
        else notice("Without a key this server does not answer. Send a message to be asked again.");
      } else if (error.code === "unreachable") {
        await this.#startup.untilReady();
        setTimeout(() => void this.#connect(), RETRY_MS);
      } else notice(error.message);
    }
  }

  #show() {
    this.#settings.system = this.#conversation.system;
    this.#transcript.show(this.#conversation);
    this.#refresh();
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
    const greeting = byId("greeting");
    greeting.hidden = this.#conversation.turns.length > 0 || this.#startup.isShown || !this.#models.length;
    if (greeting.hidden) return;
    const { isBase, chosen } = this.#models;
    byId("greeting-title").textContent = isBase ? `Begin a text, ${chosen} goes on` : `Talk to ${chosen}`;
    byId("greeting-text").textContent = isBase
      ? "This is a base model: it has no chat template and cannot answer a conversation. It continues what you write."
      : "Conversations stay in this browser.";
    const suggestions = isBase ? BASE_SUGGESTIONS : SUGGESTIONS;
    byId("suggestions").replaceChildren(...suggestions.map((text) => this.#suggestion(text)));
  }

  #suggestion(text) {
    return element("li", {}, element("button", { type: "button", onclick: () => this.#send(text) }, text));
  }

  #count() {
    // Its length is known once the model is ready; before, there is nothing that counts.
    if (this.#models.length) this.#counter.refresh(this.#conversation, this.#composer.text);
  }

  async #send(text) {
    // After the key was declined, or while nobody has answered yet.
    if (!this.#models.chosen) await this.#connect();
    if (!this.#models.chosen || this.#isHeldUp()) return;
    const conversation = this.#conversation;
    addQuestion(conversation, text);
    this.#transcript.add(conversation.turns.at(-1));
    this.#composer.text = "";
    this.#composer.focus();
    this.#begin();
  }

  /** Have a new answer written. */
  #begin() {
    const turn = addAnswer(this.#conversation, this.#models.chosen, this.#models.isBase);
    this.#transcript.add(turn);
    void this.#write();
  }

  #regenerate() {
    if (this.#isHeldUp()) return;
    this.#conversation.turns.pop();
    this.#transcript.show(this.#conversation);
    this.#begin();
    this.#composer.focus();
  }

  /** Have the last answer written, from its beginning or from where it ended. */
  async #write() {
    if (this.#isHeldUp()) return;
    const conversation = this.#conversation;
    const writing = new AbortController();
    this.#writing = writing;
    this.#composer.isBusy = true;
    const view = this.#transcript.begin();
    conversation.updatedMs = Date.now();
    notice("");
    this.#save();
    this.#greet();
    const saving = setInterval(() => this.#history.save(conversation), SAVE_EVERY_MS);
    try {
      await this.#answer.write(conversation, writing.signal, {
        onText: () => this.#writing === writing && this.#transcript.grow(),
        onWait: (message, seconds, goOn) => this.#writing === writing && view.wait(message, seconds, goOn),
      });
    } finally {
      clearInterval(saving);
      this.#finish(conversation, writing);
    }
  }

  #finish(conversation, writing) {
    const turn = conversation.turns.at(-1);
    if (this.#history.get(conversation.id)) this.#history.save(conversation);
    if (this.#writing !== writing) return;
    this.#writing = null;
    this.#composer.isBusy = false;
    this.#transcript.settle();
    this.#refresh();
    announce(`${turn.text} ${ending(turn)}`);
  }

  #stop() {
    this.#writing?.abort();
  }

  /** Tell whether nothing can be sent now, and take the reader to the reason. */
  #isHeldUp() {
    if (this.#writing) return true;
    const { wrong } = this.#settings;
    if (!wrong) return false;
    this.#drawers.open("settings");
    wrong.focus();
    return true;
  }

  #removeTurn() {
    const question = removeLast(this.#conversation);
    if (!this.#composer.text) this.#composer.text = question;
    this.#transcript.show(this.#conversation);
    this.#save();
    this.#composer.focus();
    announce("The last turn was removed");
  }

  #save() {
    this.#history.save(this.#conversation);
    this.#history.open(this.#conversation.id);
    this.#refresh();
  }

  #setSystem(system) {
    this.#conversation.system = system;
    if (this.#conversation.turns.length) this.#history.save(this.#conversation);
    this.#count();
  }

  #open(conversation) {
    this.#stop();
    this.#writing = null;
    this.#composer.isBusy = false;
    this.#conversation = conversation;
    this.#history.open(conversation.id);
    this.#show();
    this.#drawers.closeOverlays();
    this.#composer.focus();
  }

  async #rename(conversation) {
    const title = await this.#ask.text({
      title: "Rename",
      text: "The conversation's name in the list:",
      label: "Name",
      value: titleOf(conversation),
      yes: "Rename",
      check: (text) => (text.trim() ? "" : "A name has at least one character."),
    });
    if (title === null) return;
    Object.assign(conversation, { title: title.trim().slice(0, 200), isNamed: true });
    this.#history.save(conversation);
    this.#refresh();
  }

  async #remove(conversation) {
    const text = `“${titleOf(conversation)}” is removed from this browser for good.`;
    if (!(await this.#ask.confirm({ title: "Delete this conversation?", text, yes: "Delete" }))) return;
    this.#history.remove(conversation.id);
    if (conversation.id === this.#conversation.id) this.#open(newConversation());
    else this.#refresh();
    byId("new").focus();
  }

  /** Another tab has written something. What this one writes itself stays its own. */
  #readOtherTab(name) {
    this.#history.refresh(name);
    const theirs = this.#history.get(this.#conversation.id);
    if (this.#writing || !theirs || !this.#history.isNameOf(name, theirs)) return this.#refresh();
    this.#conversation = theirs;
    this.#show();
  }
}

await new Page().run();
