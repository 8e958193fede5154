// --- Markdown as DOM nodes --------------------------------------------------------------------------------------
// What a model writes only ever becomes text nodes: nothing here parses HTML. Images are shown as links, so that no
// text can make the browser fetch something.

const DEEPEST = 12; // quotes, lists and emphasis within each other; more is shown as it was written

// A text of which each character has a kind: "1" where the token is a recycled one, "0" where it is not.
class Marked {
  constructor(text, kinds) {
    this.text = text;
    this.kinds = kinds;
  }

  slice(from, to) {
    return new Marked(this.text.slice(from, to), this.kinds.slice(from, to));
  }

  lines() {
    const lines = [];
    for (let from = 0; from <= this.text.length;) {
      const end = this.text.indexOf("\n", from);
      lines.push(this.slice(from, end < 0 ? undefined : end));
      from = end < 0 ? Infinity : end + 1;
    }
    return lines;
  }

  static join(lines) {
    return new Marked(lines.map((line) => line.text).join("\n"), lines.map((line) => line.kinds).join("0"));
  }
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function textNodes(piece) {
  const nodes = [];
  for (let from = 0; from < piece.text.length;) {
    let to = piece.kinds.indexOf(piece.kinds[from] === "1" ? "0" : "1", from);
    if (to < 0) to = piece.text.length;
    const text = piece.text.slice(from, to);
    nodes.push(piece.kinds[from] === "1" ? element("span", "recycled", text) : document.createTextNode(text));
    from = to;
  }
  return nodes;
}

// --- within a line: each rule is a pattern, and what is made of its match. Lengths are bounded, and so is the time.

const wrapped = (tag) => (piece, match, depth) => element(tag, "", ...inline(within(piece, match), depth + 1));
const within = (piece, match) => {
  const from = match[0].indexOf(match[2], match[1].length);
  return piece.slice(from, from + match[2].length);
};

function link(piece, address, label) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return element("span", "", ...textNodes(piece));
  const made = element("a", "", ...label);
  made.href = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}

const RULES = [
  [/\\[!-\/:-@\[-`{-~]/y, (piece) => element("span", "", ...textNodes(piece.slice(1)))],
  [/(?<!`)(`+)(?!`)([^]{1,4000}?)(?<!`)\1(?!`)/y, (piece, match) => element("code", "", ...textNodes(within(piece, match)))],
  [/(\*\*)(?=\S)([^]{1,4000}?)(?<=\S)\*\*(?!\*)/y, wrapped("strong")],
  [/(?<!\w)(__)(?=\S)([^]{1,4000}?)(?<=\S)__(?!\w)/y, wrapped("strong")],
  [/(\*)(?=[^\s*])([^]{1,4000}?)(?<=[^\s*])\*(?!\*)/y, wrapped("em")],
  [/(?<!\w)(_)(?=[^\s_])([^]{1,4000}?)(?<=[^\s_])_(?!\w)/y, wrapped("em")],
  [/(~~)(?=\S)([^]{1,4000}?)(?<=\S)~~/y, wrapped("del")],
  [
    /(!?\[)((?:[^\[\]\\]|\\.){0,1000})\]\(\s*<?((?:[^\s()<>]|\([^\s()<>]*\))+)>?(?:\s+"[^"]*")?\s*\)/y,
    (piece, match, depth) => link(piece, match[3], inline(within(piece, match), depth + 1)),
  ],
  [/(?<!\w)https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]}*_~]/y, (piece, match) => link(piece, match[0], textNodes(piece))],
];
const SPECIAL = new Set("\\`*_~![h");

function inline(piece, depth = 0) {
  if (depth > DEEPEST) return textNodes(piece);
  const nodes = [];
  let plain = 0;
  for (let at = 0; at < piece.text.length; at++) {
    if (!SPECIAL.has(piece.text[at])) continue;
    for (const [pattern, make] of RULES) {
      pattern.lastIndex = at;
      const match = pattern.exec(piece.text);
      if (!match) continue;
      nodes.push(...textNodes(piece.slice(plain, at)));
      plain = at + match[0].length;
      nodes.push(make(piece.slice(at, plain), match, depth));
      at = plain - 1;
      break;
    }
  }
  nodes.push(...textNodes(piece.slice(plain)));
  return nodes;
}

// --- lines: each block takes its lines, and returns its node and where the next one begins

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +|$)/;
const RULER = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^ {0,3}([-*+]|\d{1,9}[.)])(?: {1,4}|$)/;
const DASHES = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

const isBlank = (line) => !line.text.trim();
const begins = (line) => [FENCE, HEADING, RULER, QUOTE, ITEM].some((pattern) => pattern.test(line.text));
const isTable = (lines, at) =>
  lines[at].text.includes("|") && (lines[at + 1]?.text.includes("|") ?? false) && DASHES.test(lines[at + 1].text);

function codeBlock(lines, at) {
  const [, fence, language] = lines[at].text.match(FENCE);
  let end = at + 1;
  const closes = (text) => text.trim().startsWith(fence) && !text.trim().replaceAll(fence[0], "");
  while (end < lines.length && !closes(lines[end].text)) end++;
  const code = element("code", "", ...textNodes(Marked.join(lines.slice(at + 1, end))));
  const copy = copyButton(() => code.textContent);
  const scrolled = element("pre", "", code);
  scrolled.tabIndex = 0; // so that the keyboard can scroll it
  return [element("div", "code", element("div", "code-bar", element("span", "", language.trim()), copy), scrolled), end + 1];
}

function quote(lines, at, depth) {
  let end = at;
  const inner = [];
  while (end < lines.length && (QUOTE.test(lines[end].text) || !(isBlank(lines[end]) || begins(lines[end])))) {
    inner.push(lines[end].slice((lines[end].text.match(QUOTE) ?? [""])[0].length));
    end++;
  }
  return [element("blockquote", "", ...blockNodes(inner, depth + 1)), end];
}

function list(lines, at, depth) {
  const ordered = /\d/.test(lines[at].text.match(ITEM)[1]);
  const isItem = (line) => ITEM.test(line.text) && !RULER.test(line.text) && /\d/.test(line.text.match(ITEM)[1]) === ordered;
  const made = element(ordered ? "ol" : "ul");
  if (ordered) made.start = parseInt(lines[at].text, 10);
  let end = at;
  while (end < lines.length && isItem(lines[end])) {
    const offset = lines[end].text.match(ITEM)[0].length;
    const inner = [lines[end].slice(offset)];
    end++;
    while (end < lines.length && belongs(lines, end, inner)) {
      const indent = lines[end].text.match(/^ */)[0].length;
      inner.push(lines[end].slice(Math.min(indent, offset)));
      end++;
    }
    made.append(element("li", "", ...blockNodes(inner, depth + 1)));
    let next = end;
    while (next < lines.length && isBlank(lines[next])) next++;
    if (next < lines.length && isItem(lines[next])) end = next;
  }
  return [made, end];
}

// Models indent what belongs to an item by two characters or more, whatever its marker's width.
function belongs(lines, at, inner) {
  if (isBlank(lines[at])) return /^ {2,}\S/.test(lines[at + 1]?.text ?? "");
  if (/^ {2,}/.test(lines[at].text)) return true;
  return !begins(lines[at]) && !isBlank(inner.at(-1));
}

function cells(line) {
  const row = [];
  const trimmed = line.text.trim();
  let from = line.text.indexOf(trimmed) + (trimmed.startsWith("|") ? 1 : 0);
  for (let at = from; at <= line.text.length; at++) {
    if (at < line.text.length && (line.text[at] !== "|" || line.text[at - 1] === "\\")) continue;
    row.push(line.slice(from, at));
    from = at + 1;
  }
  if (row.length > 1 && isBlank(row.at(-1))) row.pop();
  return row.map((cell) => cell.slice(cell.text.length - cell.text.trimStart().length, cell.text.trimEnd().length));
}

function table(lines, at) {
  const row = (tag, line) => element("tr", "", ...cells(line).map((cell) => element(tag, "", ...inline(cell))));
  let end = at + 2;
  const body = element("tbody");
  while (end < lines.length && lines[end].text.includes("|")) body.append(row("td", lines[end++]));
  return [element("div", "table", element("table", "", element("thead", "", row("th", lines[at])), body)), end];
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !begins(lines[end]) && !isTable(lines, end)) end++;
  return [element("p", "", ...inline(Marked.join(lines.slice(at, end)))), end];
}

function block(lines, at, depth) {
  const { text } = lines[at];
  if (FENCE.test(text)) return codeBlock(lines, at);
  if (depth < DEEPEST && QUOTE.test(text)) return quote(lines, at, depth);
  if (RULER.test(text)) return [element("hr"), at + 1];
  if (HEADING.test(text)) {
    const [marker, level] = text.match(HEADING);
    return [element(`h${Math.min(level.length + 2, 6)}`, "", ...inline(lines[at].slice(marker.length))), at + 1];
  }
  if (depth < DEEPEST && ITEM.test(text)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at);
}

function* blocks(lines, depth = 0) {
  for (let at = 0; at < lines.length;) {
    if (isBlank(lines[at])) at++;
    else {
      const [node, end] = block(lines, at, depth);
      yield [node, at];
      at = end;
    }
  }
}

const blockNodes = (lines, depth) => [...blocks(lines, depth)].map(([node]) => node);

// A text that grows: all but the last two blocks stay as they are, since what is added can change no others.
class Growing {
  constructor(box, isPlain) {
    this.box = box;
    this.isPlain = isPlain;
    this.settled = 0; // characters, and nodes below, that nothing changes any more
    this.nodes = 0;
  }

  show(marked) {
    if (this.isPlain) {
      this.box.append(...textNodes(marked.slice(this.settled)));
      this.settled = marked.text.length;
      return;
    }
    const lines = marked.slice(this.settled).lines();
    const made = [...blocks(lines)];
    while (this.box.childNodes.length > this.nodes) this.box.lastChild.remove();
    this.box.append(...made.map(([node]) => node));
    if (made.length < 3) return;
    const [, line] = made.at(-2);
    this.settled += lines.slice(0, line).reduce((sum, one) => sum + one.text.length + 1, 0);
    this.nodes += made.length - 2;
  }
}
