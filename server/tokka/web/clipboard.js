import { announce } from "./announcer.js";
import { element, icon } from "./element.js";

const SHOWN_MS = 1500;

/**
 * Return a button that copies a text.
 * @param {() => string} text called when the button is pressed
 */
export function copyButton(text, title) {
  const label = element("span", {}, "Copy");
  const copy = async () => {
    const done = (await write(text())) ? "Copied" : "Not copied";
    label.textContent = done;
    announce(done);
    setTimeout(() => (label.textContent = "Copy"), SHOWN_MS);
  };
  return element("button", { type: "button", class: "quiet small", title, onclick: copy }, icon("copy"), label);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return writeTheOldWay(text);
  }
}

// The clipboard API is missing on a page loaded over plain HTTP from another machine.
function writeTheOldWay(text) {
  const before = document.activeElement;
  const area = element("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  before?.focus();
  return isDone;
}
