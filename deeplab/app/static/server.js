// What the page asks of its server: one thing at a time, in the order in which it was asked, so
// that the photograph opened last is the last one at the server too. A visit that the server has
// forgotten is begun again with what it had.

let visit = "";
let photograph = null; // { query, body } of the one that is open
let opened = 0; // photographs so far
let given = null; // { address, body } of the strokes or the result that count instead of its own
let behind = false; // whether the server lacks them
let last = Promise.resolve(); // what was asked last

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function about() {
  return (await answered("/api/about")).json();
}

// query: "example=coffee", "given=1" or "name=FILE", with the file. photo: it, as a picture.
export function open(query, file) {
  return inTurn(async () => {
    const body = await content(file);
    const found = await unpacked(await post(`/api/open?${query}`, body));
    const photo = await createImageBitmap(new Blob([found.parts[0]], { type: "image/png" }));
    visit = found.about.visit;
    photograph = { query, body };
    opened += 1;
    given = null;
    behind = false;
    return { ...found, photo };
  });
}

export function loadResult(query, file) {
  return withResult(`/api/result?${query}`, file);
}

export function segment() {
  return withResult("/api/segment");
}

function withResult(address, file) {
  return inTurn(async () => {
    const body = await content(file);
    const loaded = await unpacked(await ask(address, body));
    given = { address, body };
    behind = false;
    return loaded;
  });
}

// marks: uint8, one a pixel, 255 where there is none. They take the place of a network's result,
// and are sent, as they are then, before what is asked next.
export function setMarks(marks) {
  given = { address: "/api/marks", body: marks };
  behind = true;
}

export function refine(wish, signal) {
  return ofThisPhotograph(async () =>
    unpacked(await ask("/api/refine", JSON.stringify(wish), signal)));
}

export function download(file, wish) {
  return ofThisPhotograph(async () =>
    (await ask(`/api/download?file=${file}`, JSON.stringify(wish))).blob());
}

function inTurn(task) {
  const mine = last.then(task);
  last = mine.catch(() => {}); // which whoever asked is told
  return mine;
}

function ofThisPhotograph(task) {
  const asked = opened;
  return inTurn(() => {
    if (asked === opened) return task();
    throw new Refusal(0, "Another photograph was opened before this was made.");
  });
}

async function ask(address, body, signal) {
  try {
    await catchUp();
    return await post(address, body, signal);
  } catch (error) {
    if (error.status !== 410 || !photograph) throw error;
  }
  const again = await unpacked(await post(`/api/open?${photograph.query}`, photograph.body));
  visit = again.about.visit;
  behind = given !== null;
  await catchUp();
  return post(address, body, signal);
}

async function catchUp() {
  if (!behind) return;
  behind = false; // at once: a stroke that is painted meanwhile is to be sent too
  try {
    await post(given.address, given.body);
  } catch (error) {
    behind = true;
    throw error;
  }
}

function post(address, body, signal) {
  return answered(address, { method: "POST", body, signal, headers: { "x-visit": visit } });
}

async function answered(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. Is deeplab app still running?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({ error: answer.statusText }));
  throw new Refusal(answer.status, said.error);
}

// The bytes of a file, which may change or go while the page is open.
async function content(file) {
  try {
    return await file?.arrayBuffer();
  } catch (error) {
    throw new Refusal(0, `${file.name}: must be a file that can be read (${error.message})`);
  }
}

// { about, parts }: a JSON text and the arrays behind it, as the server packs them.
async function unpacked(answer) {
  const bytes = await answer.arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const about = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  const parts = [];
  let start = 4 + length;
  for (const each of about.lengths) {
    parts.push(new Uint8Array(bytes, start, each));
    start += each;
  }
  return { about, parts };
}
