/**
 * Markdown blocks as data. Each has a `type`, its `source`, and `from`, the number of its first line.
 *
 * code {language, text} · heading {level, text} · rule · quote {text} · list {start, items: text[]} ·
 * table {head: text[], align: text[], rows: text[][]} · paragraph {text}
 *
 * Quotes and items contain blocks again; the renderer parses their text.
 */

const FENCE = /^( *)(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: (.*))?$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const MARKER = /^( *)([-*+]|\d{1,9}[.)])( +|$)(.*)$/;
const SEPARATOR = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
// Minimum indentation, in spaces, of a line that belongs to the item above it.
const NESTED_INDENT = 2;

/** @returns {object[]} */
export function parse(text) {
  const raw = text.split("\n");
  // Tabs indent like four spaces, but stay tabs in code.
  const lines = raw.map((line) => line.replace(/^[ \t]+/, (indent) => indent.replaceAll("\t", "    ")));
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const { to, ...block } = codeAt(raw, at) ?? blockAt(lines, at);
    blocks.push({ ...block, from: at, source: lines.slice(at, to).join("\n") });
    at = to;
  }
  return blocks;
}

function blockAt(lines, at) {
  return (
    headingAt(lines, at) ??
    ruleAt(lines, at) ??
    quoteAt(lines, at) ??
    listAt(lines, at) ??
    tableAt(lines, at) ??
    paragraphAt(lines, at)
  );
}

function codeAt(lines, at) {
  const [, indent, fence, info] = FENCE.exec(lines[at]) ?? [];
  if (fence === undefined) return null;
  const inside = [];
  let to = at + 1;
  // An unclosed block continues to the end of the text, because the answer is still being generated.
  for (; to < lines.length && !closes(lines[to], fence); to += 1) inside.push(dedent(lines[to], indent.length));
  const language = info.trim().split(/\s/, 1)[0].slice(0, 30);
  return { type: "code", language, text: inside.join("\n"), to: Math.min(lines.length, to + 1) };
}

function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

function headingAt(lines, at) {
  const [, marks, text = ""] = HEADING.exec(lines[at]) ?? [];
  if (!marks) return null;
  return { type: "heading", level: marks.length, text: text.trim().replace(/(^| )#+$/, ""), to: at + 1 };
}

function ruleAt(lines, at) {
  return RULE.test(lines[at]) ? { type: "rule", to: at + 1 } : null;
}

function quoteAt(lines, at) {
  let to = at;
  while (to < lines.length && QUOTE.test(lines[to])) to += 1;
  if (to === at) return null;
  const inside = lines.slice(at, to).map((line) => line.replace(QUOTE, ""));
  return { type: "quote", text: inside.join("\n"), to };
}

function markerOf(line) {
  const [, indent, sign, space, rest] = MARKER.exec(line) ?? [];
  if (sign === undefined) return null;
  const number = Number.parseInt(sign, 10);
  const width = indent.length + sign.length + Math.min(space.length, 4);
  return { indent: indent.length, width, rest, number: Number.isNaN(number) ? null : number };
}

function listAt(lines, at) {
  const first = markerOf(lines[at]);
  if (!first || first.indent > 3) return null;
  const isNested = (line) => indentOf(line) >= first.indent + NESTED_INDENT;
  const next = (line) => {
    const marker = isNested(line) || RULE.test(line) ? null : markerOf(line);
    return marker && (marker.number === null) === (first.number === null) ? marker : null;
  };
  const items = [[first.rest]];
  let { width } = first;
  let to = at + 1;
  for (; to < lines.length; to += 1) {
    const line = lines[to];
    const marker = next(line);
    if (marker) {
      items.push([marker.rest]);
      width = marker.width;
    } else if (isBlank(line)) {
      const following = lines.slice(to + 1, to + 3).find((other) => !isBlank(other));
      if (following === undefined || !(isNested(following) || next(following))) break;
      items.at(-1).push("");
    } else if (isNested(line)) items.at(-1).push(dedent(line, width));
    else if (isBlank(lines[to - 1]) || begins(lines, to)) break;
    else items.at(-1).push(line.trimStart());
  }
  return { type: "list", start: first.number, items: items.map((item) => item.join("\n")), to };
}

function tableAt(lines, at) {
  if (!beginsTable(lines, at)) return null;
  const head = cellsOf(lines[at]);
  const align = cellsOf(lines[at + 1]).map((cell) => {
    const sides = (cell.startsWith(":") ? 1 : 0) + (cell.endsWith(":") ? 2 : 0);
    return ["", "left", "right", "center"][sides];
  });
  const rows = [];
  let to = at + 2;
  for (; to < lines.length && lines[to].includes("|") && !isBlank(lines[to]); to += 1) {
    const cells = cellsOf(lines[to]);
    rows.push(head.map((_, column) => cells[column] ?? ""));
  }
  return { type: "table", head, align, rows, to };
}

function beginsTable(lines, at) {
  const separator = lines[at + 1];
  if (!lines[at].includes("|") || !separator?.includes("|") || !SEPARATOR.test(separator)) return false;
  return cellsOf(lines[at]).length === cellsOf(separator).length;
}

function cellsOf(line) {
  const text = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  return text.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraphAt(lines, at) {
  let to = at + 1;
  while (to < lines.length && !isBlank(lines[to]) && !begins(lines, to)) to += 1;
  return { type: "paragraph", text: lines.slice(at, to).map((line) => line.trim()).join("\n"), to };
}

/** Return whether a block begins here, directly after a line of another block. */
function begins(lines, at) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const marker = markerOf(line);
  // A number other than 1 at the beginning of a line may be a year, so it does not begin a list.
  if (marker?.rest && (marker.number === null || marker.number === 1)) return true;
  return beginsTable(lines, at);
}

function isBlank(line) {
  return line.trim() === "";
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function dedent(line, width) {
  return line.slice(Math.min(width, indentOf(line)));
}
