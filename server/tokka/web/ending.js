/**
 * How an answer ended: `{reason, stop?, message?}`. The reason is `stop` or `length` from the server, `stopped` by the
 * reader, or `error`. The ending is null if the page was closed while the answer was being generated.
 */

/** @returns {string} the ending in words */
export function ending(turn) {
  const { reason, stop, message } = turn.ending ?? { reason: "cut" };
  switch (reason) {
    case "stop":
      if (stop === null || stop === undefined) return "Finished";
      return typeof stop === "number" ? `Stopped at token ${stop}` : `Stopped at ${JSON.stringify(stop)}`;
    case "length":
      return stop === "timeout" ? "Reached the time limit" : "Reached the length limit";
    case "stopped":
      return "Stopped by you";
    case "error":
      return message;
    default:
      return "Cut off when the page was closed";
  }
}

/** Return whether the answer can be continued. */
export function isUnfinished(turn) {
  return turn.text !== "" && turn.ending?.reason !== "stop";
}

export function isFailure(turn) {
  return turn.ending?.reason === "error";
}

/** @returns {string} the known figures: tokens, token rate and time to first token */
export function figures(turn) {
  const parts = [];
  if (turn.tokens) parts.push(turn.tokens === 1 ? "1 token" : `${turn.tokens.toLocaleString("en")} tokens`);
  if (turn.rate) parts.push(`${turn.rate < 10 ? turn.rate.toFixed(1) : Math.round(turn.rate)} tokens/s`);
  if (turn.ttftMs !== null) parts.push(`first token after ${(turn.ttftMs / 1000).toFixed(2)} s`);
  return parts.join(" · ");
}
