import { byId } from "./element.js";

/** Show a line above the conversation, or with "" none. */
export function notice(text) {
  const line = byId("notice");
  line.hidden = !text;
  if (line.textContent !== text) line.textContent = text;
}
