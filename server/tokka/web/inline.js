import { element } from "./element.js";

const SPECIAL = /[\\`*_~[<!\n]|https?:\/\//g;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const BARE_URL = /https?:\/\/[^\s<>"'`]{1,2000}/y;
const BRACKETED_URL = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const SAFE_PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const TAGS = { "*1": "em", "_1": "em", "*2": "strong", "_2": "strong", "~2": "s" };
// Maximum depth of emphasis, and maximum characters of a label and a URL. They keep the cost linear in the length.
const MAX_DEPTH = 8;
const MAX_LABEL = 300;
const MAX_URL = 2000;

/** Return the Markdown of one block as nodes. HTML in it stays text. */
export function inline(text) {
  return new Inline(text, true).read();
}

class Inline {
  #text;
  #links;
  #at = 0;
  #root = document.createDocumentFragment();
  // Text without a node yet: one node for all of it costs less than many.
  #pending = "";
  // Open emphasis elements, innermost last.
  #open = [];
  // Lengths of backtick runs without a closing run.
  #lonely = new Set();

  constructor(text, links) {
    this.#text = text;
    this.#links = links;
  }

  read() {
    while (this.#at < this.#text.length) {
      SPECIAL.lastIndex = this.#at;
      const found = SPECIAL.exec(this.#text);
      const next = found ? found.index : this.#text.length;
      this.#say(this.#text.slice(this.#at, next));
      this.#at = next;
      if (found) this.#special(found[0]);
    }
    while (this.#open.length) this.#abandon();
    this.#flush();
    return this.#root;
  }

  #say(text) {
    this.#pending += text;
  }

  #flush() {
    if (this.#pending) (this.#open.at(-1)?.node ?? this.#root).append(this.#pending);
    this.#pending = "";
  }

  #append(node) {
    this.#flush();
    (this.#open.at(-1)?.node ?? this.#root).append(node);
  }

  /** Output this many characters literally. */
  #literal(length) {
    this.#say(this.#text.slice(this.#at, this.#at + length));
    this.#at += length;
  }

  #special(mark) {
    switch (mark) {
      case "\\":
        return this.#escape();
      case "`":
        return this.#code();
      case "\n":
        return this.#lineEnd();
      case "[":
        return this.#link(0);
      case "!":
        // Show a link instead of a picture, which the browser would fetch from another server.
        return this.#text[this.#at + 1] === "[" ? this.#link(1) : this.#literal(1);
      case "<":
        return this.#url(BRACKETED_URL);
      case "*":
      case "_":
      case "~":
        return this.#emphasis(mark);
      default:
        return this.#url(BARE_URL);
    }
  }

  #escape() {
    const next = this.#text[this.#at + 1] ?? "";
    if (next === "\n") this.#at += 1;
    else if (ESCAPABLE.test(next)) {
      this.#say(next);
      this.#at += 2;
    } else this.#literal(1);
  }

  // Chat models use line ends on purpose, as in verses.
  #lineEnd() {
    this.#append(element("br"));
    this.#at += 1;
  }

  #code() {
    const size = runLength(this.#text, this.#at);
    const begin = this.#at + size;
    const end = this.#lonely.has(size) ? -1 : this.#closing(begin, size);
    if (end < 0) {
      this.#lonely.add(size);
      return this.#literal(size);
    }
    let code = this.#text.slice(begin, end).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
    this.#append(element("code", {}, code));
    this.#at = end + size;
  }

  #closing(from, size) {
    for (let at = this.#text.indexOf("`", from); at >= 0; at = this.#text.indexOf("`", at)) {
      const length = runLength(this.#text, at);
      if (length === size) return at;
      at += length;
    }
    return -1;
  }

  #emphasis(mark) {
    let left = runLength(this.#text, this.#at);
    const before = this.#text[this.#at - 1] ?? " ";
    const after = this.#text[this.#at + left] ?? " ";
    // snake_case_names are not emphasis.
    const mayOpen = /\S/.test(after) && !(mark === "_" && isWord(before));
    const mayClose = /\S/.test(before) && !(mark === "_" && isWord(after));
    while (left) {
      const opener = mayClose ? this.#opener(mark, left) : -1;
      const size = Math.min(2, left);
      if (opener >= 0) {
        while (this.#open.length > opener + 1) this.#abandon();
        this.#flush();
        const { size: closed } = this.#open.pop();
        this.#at += closed;
        left -= closed;
      } else if (mayOpen && left <= 3 && TAGS[mark + size] && this.#open.length < MAX_DEPTH) {
        const node = element(TAGS[mark + size]);
        this.#append(node);
        this.#open.push({ node, mark, size });
        this.#at += size;
        left -= size;
      } else {
        this.#literal(left);
        left = 0;
      }
    }
  }

  #opener(mark, most) {
    return this.#open.findLastIndex((entry) => entry.mark === mark && entry.size <= most);
  }

  /** Turn the innermost emphasis back into text, because it was never closed. */
  #abandon() {
    this.#flush();
    const { node, mark, size } = this.#open.pop();
    const inside = document.createDocumentFragment();
    inside.append(mark.repeat(size));
    while (node.firstChild) inside.append(node.firstChild);
    node.replaceWith(inside);
  }

  #url(pattern) {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (!found) return this.#literal(1);
    const isBare = pattern === BARE_URL;
    const url = isBare ? withoutPunctuation(found[0]) : found[1];
    const isFree = this.#links && !isWord(this.#text[this.#at - 1] ?? " ");
    const node = isFree && anchor(url, url.replace(/^mailto:/, ""));
    if (!node) return this.#literal(found[0].length);
    this.#append(node);
    this.#at += isBare ? url.length : found[0].length;
  }

  #link(bang) {
    const label = this.#links && labelAt(this.#text, this.#at + bang);
    const target = label && targetAt(this.#text, label.end);
    if (!target) return this.#literal(1 + bang);
    const inside = new Inline(label.text || (bang ? "picture" : target.url), false).read();
    // Show only the label of a link with an unsafe target.
    this.#append(anchor(target.url, inside) ?? inside);
    this.#at = target.end;
  }
}

function anchor(url, content) {
  if (!URL.canParse(url) || !SAFE_PROTOCOLS.has(new URL(url).protocol)) return null;
  return element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, content);
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function isWord(character) {
  return /[\p{L}\p{N}]/u.test(character);
}

/** Return the text between brackets and its end, or null. */
function labelAt(text, at) {
  let depth = 0;
  for (let end = at; end < Math.min(text.length, at + MAX_LABEL); end += 1) {
    if (text[end] === "\\") end += 1;
    else if (text[end] === "[") depth += 1;
    else if (text[end] === "]" && --depth === 0) return { text: text.slice(at + 1, end), end: end + 1 };
  }
  return null;
}

/** Return the address between parentheses, without its title, and its end, or null. */
function targetAt(text, at) {
  if (text[at] !== "(") return null;
  let depth = 0;
  for (let end = at; end < Math.min(text.length, at + MAX_URL); end += 1) {
    if (text[end] === "\n") return null;
    if (text[end] === "(") depth += 1;
    else if (text[end] === ")" && --depth === 0) {
      const [url = ""] = text.slice(at + 1, end).trim().split(/\s/, 1);
      return { url: url.replace(/^<(.*)>$/, "$1"), end: end + 1 };
    }
  }
  return null;
}

function withoutPunctuation(url) {
  let end = url.length;
  while (/[.,;:!?*_~]/.test(url[end - 1]) || (url[end - 1] === ")" && !url.slice(0, end).includes("("))) end -= 1;
  return url.slice(0, end);
}
