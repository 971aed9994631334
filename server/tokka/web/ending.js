/**
 * How an answer ended: `{reason, stop?, message?}` with the reasons `stop` and `length` of the server, `stopped` by the
 * reader, `error`, and null where the page was left while it was written.
 */

/** @returns {string} the ending in words */
export function ending(turn) {
  const { reason, stop, message } = turn.ending ?? { reason: "cut" };
  switch (reason) {
    case "stop":
      if (stop === null || stop === undefined) return "Finished";
      return typeof stop === "number" ? `Stopped at the token ${stop}` : `Stopped at ${JSON.stringify(stop)}`;
    case "length":
      return stop === "timeout" ? "The server's time was over" : "Reached the limit of length";
    case "stopped":
      return "Stopped by you";
    case "error":
      return message;
    default:
      return "Cut off when the page was left";
  }
}

/** Tell whether there is more to come of this answer. */
export function isUnfinished(turn) {
  return turn.text !== "" && turn.ending?.reason !== "stop";
}

export function isFailure(turn) {
  return turn.ending?.reason === "error";
}

/** @returns {string} what the answer took, as far as it is known */
export function figures(turn) {
  const parts = [];
  if (turn.tokens) parts.push(turn.tokens === 1 ? "1 token" : `${turn.tokens.toLocaleString("en")} tokens`);
  if (turn.rate) parts.push(`${turn.rate < 10 ? turn.rate.toFixed(1) : Math.round(turn.rate)} tokens/s`);
  if (turn.ttftMs !== null) parts.push(`first after ${(turn.ttftMs / 1000).toFixed(2)} s`);
  return parts.join(" · ");
}
