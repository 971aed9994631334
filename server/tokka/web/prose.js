import { copyButton } from "./clipboard.js";
import { element } from "./element.js";
import { inline } from "./inline.js";
import { parse } from "./markdown.js";

// Maximum nesting depth. Deeper blocks are shown as text.
const MAX_DEPTH = 8;
// Levels to add to an answer's headings: the page has its own above them.
const HEADING_OFFSET = 2;
// From a node to the source it shows.
const made = new WeakMap();

/** Renders a growing answer's Markdown. Complete blocks stay untouched; of the others only changes are rendered. */
export class Prose {
  #root;
  #text = "";
  // Characters in complete blocks, and the number of these blocks.
  #doneChars = 0;
  #doneBlocks = 0;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
  }

  /** @param {string} text the whole text so far */
  show(text) {
    if (!text.startsWith(this.#text)) {
      this.#doneChars = this.#doneBlocks = 0;
    }
    this.#text = text;
    const tail = text.slice(this.#doneChars);
    const blocks = parse(tail);
    fit(this.#root, this.#doneBlocks, blocks, 0);
    this.#complete(tail, blocks);
  }

  /** A block is complete once the next one has a whole line, because half a line may still become any block. */
  #complete(tail, blocks) {
    const lines = tail.split("\n");
    const last = blocks.findLastIndex((block) => block.from < lines.length - 1);
    if (last < 1) return;
    this.#doneBlocks += last;
    for (const line of lines.slice(0, blocks[last].from)) this.#doneChars += line.length + 1;
  }
}

/** Make the children from `first` on show these blocks, and keep unchanged ones. */
function fit(parent, first, blocks, depth) {
  blocks.forEach((block, at) => {
    const old = parent.children[first + at];
    const before = old && made.get(old);
    if (before?.source === block.source && before.type === block.type) return;
    const node = (before && grown(old, before, block, depth)) ?? built(block, depth);
    made.set(node, block);
    if (!old) parent.append(node);
    else if (old !== node) old.replaceWith(node);
  });
  while (parent.children.length > first + blocks.length) parent.lastElementChild.remove();
}

/** Update the node in place if that costs less than a new one; otherwise return null. */
function grown(node, before, block, depth) {
  if (before.type !== block.type) return null;
  switch (block.type) {
    case "code": {
      if (before.language !== block.language || !block.text.startsWith(before.text)) return null;
      node.querySelector("code").append(block.text.slice(before.text.length));
      return node;
    }
    case "list": {
      if ((before.start === null) !== (block.start === null)) return null;
      fitItems(node, block, depth);
      return node;
    }
    case "table": {
      const body = node.querySelector("tbody");
      if (before.head.join("|") !== block.head.join("|") || before.align.join() !== block.align.join()) return null;
      fitRows(body, block);
      return node;
    }
    case "quote": {
      fitInside(node, block.text, depth);
      return node;
    }
    default:
      return null;
  }
}

function built(block, depth) {
  switch (block.type) {
    case "code":
      return codeNode(block);
    case "heading": {
      const level = Math.min(6, block.level + HEADING_OFFSET);
      return element(`h${level}`, { class: `level-${block.level}` }, inline(block.text));
    }
    case "rule":
      return element("hr");
    case "quote": {
      const node = element("blockquote");
      fitInside(node, block.text, depth);
      return node;
    }
    case "list": {
      const node = block.start === null ? element("ul") : element("ol", { start: block.start });
      fitItems(node, block, depth);
      return node;
    }
    case "table":
      return tableNode(block);
    default:
      return element("p", {}, inline(block.text));
  }
}

function codeNode(block) {
  // Append text nodes: setting the whole text would cost its length each time.
  const code = element("code", {}, block.text);
  const bar = element("div", { class: "bar" }, element("span", {}, block.language || "text"));
  bar.append(copyButton(() => code.textContent, "Copy this code"));
  const pre = element("pre", { tabindex: 0, role: "region", "aria-label": `Code: ${block.language || "text"}` }, code);
  return element("div", { class: "code" }, bar, pre);
}

function tableNode(block) {
  const cells = block.head.map((cell, at) => element("th", { scope: "col", class: block.align[at] }, inline(cell)));
  const body = element("tbody");
  fitRows(body, block);
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...cells)), body);
  return element("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Table" }, table);
}

function fitRows(body, block) {
  keep(body, block.rows, (cells) => cells.join("|"), (cells) =>
    element("tr", {}, ...cells.map((cell, at) => element("td", { class: block.align[at] }, inline(cell)))),
  );
}

function fitItems(list, block, depth) {
  block.items.forEach((text, at) => {
    const item = list.children[at] ?? list.appendChild(element("li"));
    if (made.get(item) !== text) fitInside(item, text, depth);
    made.set(item, text);
  });
  while (list.children.length > block.items.length) list.lastElementChild.remove();
}

function fitInside(node, text, depth) {
  const blocks = depth < MAX_DEPTH ? parse(text) : [{ type: "paragraph", text, source: text }];
  fit(node, 0, blocks, depth + 1);
}

function keep(parent, values, sourceOf, build) {
  values.forEach((value, at) => {
    const old = parent.children[at];
    const source = sourceOf(value);
    if (old && made.get(old) === source) return;
    const node = build(value);
    made.set(node, source);
    if (old) old.replaceWith(node);
    else parent.append(node);
  });
  while (parent.children.length > values.length) parent.lastElementChild.remove();
}
