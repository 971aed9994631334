import { byId } from "./element.js";

/** Have screen readers say something when they are done with what they say now. */
export function announce(text) {
  byId("announcer").textContent = text;
}
