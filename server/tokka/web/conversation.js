/**
 * A conversation: `{id, title, isNamed, updatedMs, system, turns, writer}`; `writer` is the tab that writes it (see
 * history.js), or null.
 *
 * A turn is `{role: "user", text}` or `{role: "assistant", text, reasoning, model, isPlain, ending, tokens, ttftMs,
 * rate, former}`. `ending` is null until the answer is complete (see ending.js). `isPlain` marks a base model's text.
 * `former` is the answer that this one will replace.
 */

const TITLE_CHARS = 60;

export function newConversation(system = "") {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, title: "", isNamed: false, updatedMs: Date.now(), system, turns: [], writer: null };
}

export function titleOf(conversation) {
  return conversation.title || "New conversation";
}

export function addQuestion(conversation, text) {
  conversation.turns.push({ role: "user", text });
  if (conversation.isNamed || conversation.title) return;
  const line = text.trim().split("\n", 1)[0];
  conversation.title = line.length > TITLE_CHARS ? `${line.slice(0, TITLE_CHARS - 1)}…` : line;
}

export function emptyAnswer(model = "", isPlain = false) {
  const turn = { role: "assistant", text: "", reasoning: "", model, isPlain, ending: null };
  return { ...turn, tokens: 0, ttftMs: null, rate: null, former: null };
}

export function addAnswer(conversation, model, isPlain) {
  conversation.turns.push(emptyAnswer(model, isPlain));
  return conversation.turns.at(-1);
}

/** Restart the last answer. The new one keeps the former one until it has replaced it. */
export function renewAnswer(conversation, model, isPlain) {
  const former = conversation.turns.pop();
  addAnswer(conversation, model, isPlain).former = former.text ? former : null;
}

/**
 * End the generation of the last answer. Restore the former answer if the last one stayed without a result.
 * @returns {boolean} whether the former answer is back
 */
export function settleAnswer(conversation) {
  const turn = conversation.turns.at(-1);
  if (!turn?.former) return false;
  const isReplaced = turn.text !== "" || ["stop", "length"].includes(turn.ending?.reason);
  if (!isReplaced) conversation.turns.splice(-1, 1, turn.former);
  turn.former = null;
  return !isReplaced;
}

/** Remove the last question and its answer. @returns {string} the question */
export function removeLast(conversation) {
  const at = conversation.turns.findLastIndex((turn) => turn.role === "user");
  const [question] = conversation.turns.splice(Math.max(0, at));
  return question?.role === "user" ? question.text : "";
}

/** Return the messages of a chat request. Templates need alternating roles, so unanswered questions are joined. */
export function messagesOf(conversation, draft = "") {
  const messages = [];
  if (conversation.system.trim()) messages.push({ role: "system", content: conversation.system });
  const turns = draft ? [...conversation.turns, { role: "user", text: draft }] : conversation.turns;
  for (const { role, text } of turns) {
    if (role === "assistant" && !text) continue;
    const last = messages.at(-1);
    if (last?.role === role) last.content += `\n\n${text}`;
    else messages.push({ role, content: text });
  }
  return messages;
}

/** Return the text that a base model continues. */
export function textOf(conversation, draft = "") {
  return conversation.turns.map((turn) => turn.text).join("") + draft;
}
