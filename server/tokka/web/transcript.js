import { byId } from "./element.js";
import { AnswerView, QuestionView } from "./turn.js";

// So near to the end counts as there.
const NEAR_PX = 40;

/** The turns of the open conversation. It follows its end as long as the reader is there, and no longer. */
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
    // Also when a panel opens or the window changes.
    new ResizeObserver(() => this.#keepPlace()).observe(this.#turns);
    new ResizeObserver(() => this.#keepPlace()).observe(this.#scroller);
  }

  show(conversation) {
    cancelAnimationFrame(this.#frame);
    this.#views = conversation.turns.map((turn) => this.#view(turn));
    this.#turns.replaceChildren(...this.#views.map((view) => view.node));
    this.settle();
    this.follow();
  }

  add(turn) {
    const view = this.#view(turn);
    this.#views.push(view);
    this.#turns.append(view.node);
    return view;
  }

  /** The last answer is written from now on. @returns {AnswerView} */
  begin() {
    for (const view of this.#views) view.settle(false);
    const view = this.#views.at(-1);
    view.begin();
    this.follow();
    return view;
  }

  /** Show the last answer's new text with the next frame, however much comes until then. */
  grow() {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#views.at(-1)?.grow();
      this.#keepPlace();
    });
  }

  /** Nothing is being written: show all of it, and what can be done with the last answer. */
  settle() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const last = this.#views.at(-1);
    if (last instanceof AnswerView) last.show();
    for (const view of this.#views) view.settle(view === last);
    this.#keepPlace();
  }

  /** Go to the end and stay there. */
  follow() {
    this.#follows = true;
    this.#keepPlace();
  }

  #view(turn) {
    return turn.role === "user" ? new QuestionView(turn) : new AnswerView(turn, this.actions);
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
