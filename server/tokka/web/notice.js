import { byId } from "./element.js";

/**
 * Show a line above the conversation, or with "" none.
 * @param {string} text
 * @param {{label: string, act: () => void} | null} remedy a button for what can be done about it
 */
export function notice(text, remedy = null) {
  const line = byId("notice");
  const words = line.querySelector("span");
  const button = line.querySelector("button");
  line.hidden = !text;
  // Written again it would be read aloud again.
  if (words.textContent !== text) words.textContent = text;
  button.hidden = !remedy;
  button.textContent = remedy?.label ?? "";
  button.onclick = remedy?.act ?? null;
}

/** Take back what a line said, if it still says so. */
export function withdraw(text) {
  if (byId("notice").querySelector("span").textContent === text) notice("");
}
