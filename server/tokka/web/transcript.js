import { byId } from "./element.js";
import { AnswerView, QuestionView } from "./turn.js";

// Pixels from the end that still count as the end.
const NEAR_PX = 40;

/** The turns of the open conversation. It scrolls with the text only while the reader is at the end. */
export class Transcript {
  #turns = byId("turns");
  #scroller = byId("scroller");
  #toEnd = byId("to-end");
  #views = [];
  #follows = true;
  #frame = 0;

  /** @param {{regenerate: () => void, resume: () => void, remove: () => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.#scroller.addEventListener("scroll", () => this.#notePlace(), { passive: true });
    this.#toEnd.addEventListener("click", () => {
      this.follow();
      this.#scroller.focus();
    });
    // Keep the position also when a panel opens or the window changes.
    new ResizeObserver(() => this.#keepPlace()).observe(this.#turns);
    new ResizeObserver(() => this.#keepPlace()).observe(this.#scroller);
  }

  clear() {
    this.#views = [];
    this.#turns.replaceChildren();
  }

  /**
   * Show the conversation and keep the scroll position.
   * @param {boolean} isElsewhere its last answer is being written in another tab
   */
  update({ turns }, isElsewhere = false) {
    let kept = 0;
    while (kept < turns.length && this.#views[kept]?.take(turns[kept])) kept += 1;
    for (const view of this.#views.splice(kept)) view.node.remove();
    for (const turn of turns.slice(kept)) this.#add(turn);
    this.settle(isElsewhere);
  }

  /** Show the last answer as in progress. @returns {AnswerView} */
  begin() {
    for (const view of this.#views) view.settle(false);
    const view = this.#views.at(-1);
    view.begin();
    this.follow();
    return view;
  }

  /** Show the last answer's new text with the next frame. Further calls until then are merged. */
  grow() {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#views.at(-1)?.grow();
      this.#keepPlace();
    });
  }

  /** Show the conversation as complete, with the actions of the last answer. */
  settle(isElsewhere = false) {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const last = this.#views.at(-1);
    if (last instanceof AnswerView) last.show();
    for (const view of this.#views) view.settle(view === last);
    if (isElsewhere && last instanceof AnswerView) last.begin("Being written in another tab");
    this.#keepPlace();
  }

  /** Scroll to the end and follow it. */
  follow() {
    this.#follows = true;
    this.#keepPlace();
  }

  #add(turn) {
    const view = turn.role === "user" ? new QuestionView(turn) : new AnswerView(turn, this.actions);
    this.#views.push(view);
    this.#turns.append(view.node);
  }

  #notePlace() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    this.#toEnd.hidden = this.#follows;
  }

  #keepPlace() {
    if (this.#follows) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#notePlace();
  }
}
