const ESCAPES = { "\\n": "\n", "\\\\": "\\" };

/** Return the stop strings, one a line: `\n` stands for a line break, `\\` for a backslash. */
export function stopsOf(text) {
  const lines = text.split("\n").filter((line) => line !== "");
  return lines.map((line) => line.replaceAll(/\\[n\\]/g, (escape) => ESCAPES[escape]));
}

/** Return token ids, separated by spaces or commas; NaN for an invalid one. */
export function tokenIdsOf(text) {
  const words = text.split(/[\s,]+/).filter((word) => word !== "");
  return words.map((word) => (/^\d{1,10}$/.test(word) ? Number(word) : Number.NaN));
}
