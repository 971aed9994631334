import { byId } from "./element.js";

/**
 * Show a line above the conversation; "" hides it.
 * @param {string} text
 * @param {{label: string, act: () => void} | null} remedy the button that solves the problem
 */
export function notice(text, remedy = null) {
  const line = byId("notice");
  const words = line.querySelector("span");
  const button = line.querySelector("button");
  line.hidden = !text;
  // Assign only a change, because screen readers read each assignment aloud.
  if (words.textContent !== text) words.textContent = text;
  button.hidden = !remedy;
  button.textContent = remedy?.label ?? "";
  button.onclick = remedy?.act ?? null;
}

/** Hide the line if it still shows this text. */
export function withdraw(text) {
  if (byId("notice").querySelector("span").textContent === text) notice("");
}
