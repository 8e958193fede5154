// --- chats as files: what is exported can be imported, here or in another browser --------------------------------
// A file holds one chat, or a list of them. Its messages are those of OpenAI's API, also from elsewhere; its turns
// are the page's own, with attached files, figures and other answers apart. They count where they say the same.

const LARGEST_IMPORT = 32 << 20; // bytes; a browser keeps some 5 MB of chats
const ROLES = ["user", "assistant", "tool"];

function exported(chat) {
  const system = chat.system ? [{ role: "system", content: chat.system }] : [];
  return { model: state.model?.id, title: chat.title, updated: chat.updated,
    messages: [...system, ...chat.turns.map(message)], turns: chat.turns };
}

const exportChat = (chat) => download(chat.title, exported(chat));
const exportAll = () => download("chats", allChats().map(exported));

function download(title, content) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  link.download = `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "chat"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Nothing of a file is kept unless all of it makes sense, and no chat that is here is touched.
async function importChats(files) {
  say("");
  const imported = [];
  try {
    for (const file of files) imported.push(...await chatsOf(file));
  } catch (error) {
    return say(`${error.message}: nothing is imported.`);
  }
  const kept = imported.filter((chat) => store(CHAT + chat.id, chat));
  if (kept.length < imported.length) {
    for (const chat of kept) forgetChat(chat.id);
    return say("The browser's storage is too full for these chats: nothing is imported. Export and delete others.");
  }
  drawChats();
  $("status").textContent = `${imported.length} imported`;
  return imported.length && !state.running ? openChat(imported[0].id) : undefined;
}

async function chatsOf(file) {
  if (file.size > LARGEST_IMPORT) throw new Error(`${file.name} is larger than 32 MB`);
  const text = await file.text().catch(() => { throw new Error(`${file.name} cannot be read`); });
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    throw new Error(`${file.name} is no chat that was exported, since it is not JSON, or not whole`);
  }
  const chats = Array.isArray(content) ? content : [content];
  try {
    return chats.map(chatOf);
  } catch (error) {
    throw new Error(`${file.name} is no chat that was exported: ${error.message}`);
  }
}

function chatOf(content) {
  if (!Array.isArray(content?.messages)) throw new Error("it has no list of messages");
  const [first] = content.messages;
  const before = first?.role === "system" ? 1 : 0;
  const system = before ? textOf(first, 0) : "";
  const turns = content.messages.slice(before).map((one, index) => turnOf(one, index + before));
  if (!turns.length) throw new Error("it has no messages");
  const same = JSON.stringify(ownTurns(content.turns).map(message)) === JSON.stringify(turns.map(message));
  const chat = { ...newChat(), system, turns: same ? ownTurns(content.turns) : turns };
  chat.title = titleOf(chat);
  if (Number.isFinite(content.updated)) chat.updated = content.updated;
  return chat;
}

function textOf({ content, tool_calls }, index) {
  if (typeof content === "string") return content;
  if (content === null && tool_calls) return "";
  const isText = (part) => part?.type === "text" && typeof part.text === "string";
  if (Array.isArray(content) && content.every(isText)) return content.map(({ text }) => text).join("");
  throw new Error(`the content of message ${index + 1} is not text`);
}

function turnOf(one, index) {
  if (!ROLES.includes(one?.role)) throw new Error(`message ${index + 1} has no role that is known here`);
  const turn = { role: one.role, content: textOf(one, index) };
  if (one.role === "assistant") turn.strategy = "imported";
  if (one.role === "tool") turn.tool_call_id = String(one.tool_call_id ?? "");
  if (one.tool_calls?.length) turn.tool_calls = [...one.tool_calls].map((call) => callOf(call, index));
  return turn;
}

function callOf(call, index) {
  const { name, arguments: text } = call?.function ?? {};
  if (typeof name !== "string" || typeof text !== "string") throw new Error(`a call of message ${index + 1} is none`);
  return { id: String(call.id ?? ""), type: "function", function: { name, arguments: text } };
}

// --- the page's own turns: of each field what can be shown, since a file may hold anything

function ownTurns(turns) {
  try {
    return turns.map(ownTurn);
  } catch {
    return [];
  }
}

function ownTurn(one, index) {
  const turn = turnOf(one, index);
  if (typeof one.strategy === "string" && turn.strategy) turn.strategy = one.strategy;
  for (const name of ["typed", "reason"]) if (typeof one[name] === "string") turn[name] = one[name];
  const wanted = {
    runs: Number.isInteger,
    figures: (row) => Array.isArray(row) && row.length === 2 && row.every((cell) => ["string", "number"].includes(typeof cell)),
    files: (file) => typeof file?.name === "string" && typeof file.text === "string",
  };
  for (const [name, fits] of Object.entries(wanted)) {
    if (Array.isArray(one[name]) && one[name].every(fits)) turn[name] = one[name];
  }
  if (turn.runs?.some((run) => run < 0 || run > turn.content.length)) delete turn.runs;
  if (Array.isArray(one.others)) turn.others = ownTurns(one.others.map((other) => ({ ...other, others: undefined })));
  return turn;
}
