const ESCAPES = { "\\n": "\n", "\\\\": "\\" };

/** Read stop strings, one a line: `\n` stands for a line end, `\\` for a backslash. */
export function stopsOf(text) {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replaceAll(/\\[n\\]/g, (escape) => ESCAPES[escape]));
}

/** Read token ids, by spaces or commas apart; NaN for what is none. */
export function tokenIdsOf(text) {
  const words = text.split(/[\s,]+/).filter((word) => word !== "");
  return words.map((word) => (/^\d{1,10}$/.test(word) ? Number(word) : Number.NaN));
}
