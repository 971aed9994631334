import { byId } from "./element.js";

/** Queue a text for screen readers to read aloud. */
export function announce(text) {
  byId("announcer").textContent = text;
}
