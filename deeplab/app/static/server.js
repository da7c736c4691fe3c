// What the page asks of its server. One visit at a time; a visit that the server has forgotten is
// begun again with the photograph, and the result, that were opened last.

let visit = "";
let openedLast = null;
let resultLast = null;
let marksLast = null;

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function about() {
  return fetch("/api/about").then((answer) => answer.json());
}

// query: "example=coffee", "given=1" or "name=FILE", with the file as body.
export async function open(query, body) {
  const opened = await unpacked(await post(`/api/open?${query}`, body));
  visit = opened.about.visit;
  openedLast = () => open(query, body);
  resultLast = marksLast = null;
  return opened;
}

export async function loadResult(query, body) {
  return withResult(`/api/result?${query}`, body);
}

export async function segment() {
  return withResult("/api/segment");
}

async function withResult(address, body) {
  const loaded = await unpacked(await again(address, body));
  resultLast = () => post(address, body);
  marksLast = null;
  return loaded;
}

// marks: uint8, one a pixel, 255 where there is none. They take the place of a network's result.
export async function sendMarks(marks) {
  const body = marks.slice();
  await again("/api/marks", body);
  resultLast = null;
  marksLast = () => post("/api/marks", body);
}

export async function refine(wish, signal) {
  return unpacked(await again("/api/refine", JSON.stringify(wish), signal));
}

export async function download(file, wish) {
  return (await again(`/api/download?file=${file}`, JSON.stringify(wish))).blob();
}

async function again(address, body, signal) {
  try {
    return await post(address, body, signal);
  } catch (error) {
    if (error.status !== 410 || !openedLast) throw error;
  }
  const [result, marks] = [resultLast, marksLast];
  await openedLast();
  if (result) await result();
  if (marks) await marks();
  [resultLast, marksLast] = [result, marks];
  return post(address, body, signal);
}

async function post(address, body, signal) {
  let answer;
  try {
    answer = await fetch(address, { method: "POST", body, signal, headers: { "x-visit": visit } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server does not answer. Is deeplab app still running?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({ error: answer.statusText }));
  throw new Refusal(answer.status, said.error);
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
