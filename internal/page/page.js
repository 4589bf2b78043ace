// The operator's page. All that it shows comes as JSON and becomes text, never
// markup: the Content-Security-Policy would not have it otherwise.

const $ = (id) => document.getElementById(id);

/** An element with text or elements in it; foreign text goes into a <bdi>. */
function el(tag, className, ...content) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  e.append(...content.filter((c) => c !== null && c !== undefined));
  return e;
}
const foreign = (text) => el("bdi", "", text);

/** Sets a text if it differs, so that a screen reader isn't told anew. */
function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

// ---- numbers for people

function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}
const whole = new Intl.NumberFormat("en").format;
const count = (n, one, many = `${one}s`) => `${whole(n)} ${n === 1 ? one : many}`;
const rate = (r) => `${r >= 100 ? Math.round(r) : r.toFixed(1)}/s`;

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let u = 0;
  for (; n >= 1024 && u < units.length - 1; u++) n /= 1024;
  return `${u === 0 ? n : n.toFixed(1)} ${units[u]}`;
}

const clock = (date, long) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: long ? "2-digit" : undefined, hour12: false });

/** A time of day, with the date unless it is today's. */
function when(time) {
  const d = new Date(time);
  const today = d.toDateString() === new Date().toDateString();
  return today ? clock(d, false) : `${d.toLocaleDateString([], { day: "numeric", month: "short" })}, ${clock(d, false)}`;
}

/** Seconds from a time to the picture's, by the daemon's clock. */
const since = (now, time) => (Date.parse(now.at) - Date.parse(time)) / 1000;

// ---- the token: it comes in the address, and stays in this tab

let token = "";
function takeToken(text) {
  const at = text.lastIndexOf("#");
  token = text.slice(at + 1).trim();
  try { sessionStorage.setItem("token", token); } catch { /* then it is asked for at each load */ }
}
if (location.hash.length > 1) {
  takeToken(decodeURIComponent(location.hash));
  history.replaceState(null, "", location.pathname); // so that nobody reads it over a shoulder
} else {
  try { token = sessionStorage.getItem("token") ?? ""; } catch { /* as above */ }
}

function ask(path, options = {}) {
  return fetch(path, { ...options, headers: token ? { Authorization: `Bearer ${token}` } : {}, cache: "no-store", credentials: "same-origin" });
}

async function refusal(response) {
  try { return (await response.json()).error ?? response.statusText; } catch { return response.statusText; }
}

// ---- the stream of pictures

const patience = 10_000; // without a picture for so long, the line is dead
let knock = null; // wakes the loop when a token was typed

async function* events(response, alive) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const m = /^event: (\w+)\ndata: (.*)$/s.exec(part);
      if (m) yield [m[1], JSON.parse(m[2])];
    }
  }
}

async function listen() {
  const abort = new AbortController();
  let timer;
  const alive = () => { clearTimeout(timer); timer = setTimeout(() => abort.abort(), patience); };
  alive();
  try {
    const response = await ask("api/events", { signal: abort.signal });
    if (response.status === 403) {
      lost(token ? "refused" : "closed");
      return showDoor(token ? await refusal(response) : "");
    }
    if (!response.ok) return lost(await refusal(response));
    $("door").hidden = true;
    $("desk").hidden = false;
    $("link").dataset.is = "live";
    say("link", "live");
    for await (const [event, data] of events(response, alive)) {
      if (event === "history") past = data;
      else draw(data);
    }
    lost("no connection, trying again");
  } catch {
    lost("no connection, trying again");
  } finally {
    clearTimeout(timer);
    abort.abort();
  }
}

function lost(why) {
  $("link").dataset.is = "lost";
  say("link", why);
}

function showDoor(why) {
  $("desk").hidden = true;
  $("door").hidden = false;
  if (why) say("door-why", `Not opened: ${why}.`);
  return new Promise((resolve) => { knock = resolve; });
}

$("door").addEventListener("submit", (e) => {
  e.preventDefault();
  takeToken($("token").value);
  $("token").value = "";
  knock?.();
});

// ---- the picture

let past = { minutes: { step: 1, points: [] }, day: { step: 120, points: [] } };
let last = null;

function draw(now) {
  last = now;
  say("hostname", now.hostname);
  say("version", now.version);
  document.title = `${now.error ? "?" : whole(now.messages - now.held)} waiting · Understudy`;
  if (now.error) {
    $("state").dataset.is = "unknown";
    say("says", "The queue does not answer");
    say("more", now.error);
    return;
  }
  drawState(now);
  drawTroubles(now);
  drawNumbers(now);
  remember(now);
  drawChart();
  drawHops(now);
  drawPolicy(now.policy, now);
  drawParity(now);
  drawFleet(now.fleet, now);
  drawVerdicts(now.verdicts);
  drawOutages(now);
  refreshMail(now);
}

const down = (r) => !r.up && r.last_error !== "";

function drawState(now) {
  const gone = now.routes.filter(down);
  const unseen = now.routes.filter((r) => !r.up && !down(r));
  const waiting = now.messages - now.held;
  const names = (list) => list.length === 1 && list[0].name === "primary" ? "The primary" : list.map((r) => r.name).join(", ");
  let is = "up", says = `${names(now.routes)} ${now.routes.length > 1 ? "are" : "is"} up`, more = "";
  if (gone.length) {
    is = "down";
    says = `${names(gone)} ${gone.length > 1 ? "are" : "is"} down, we stand in`;
    more = gone.map((r) => `${gone.length > 1 ? `${r.name}: ` : ""}for ${age(since(now, r.since))}, since ${when(r.since)}. ${r.last_error}`).join(" · ");
    more = more.charAt(0).toUpperCase() + more.slice(1);
  } else if (unseen.length) {
    is = "unknown";
    says = `${names(unseen)}: being asked for the first time`;
  } else if (waiting > 0) {
    is = "draining";
    says = `${says}, the queue drains`;
    more = `${count(waiting, "message")} to go, ${rate(now.out_per_second)} leaving.`;
  } else {
    more = `For ${age(since(now, now.routes.map((r) => r.since).sort().at(-1) ?? now.at))}. Nothing waits${now.held ? " but held mail" : ""}.`;
  }
  $("state").dataset.is = is;
  say("says", says);
  say("more", more);
}

function drawTroubles(now) {
  const list = [];
  if (now.broken) list.push("The store is being opened again after a failed write: mail is answered 451.");
  if (now.damaged) list.push("The store is damaged: stop understudy when you can, run understudy queue repair.");
  if (now.quarantined) list.push(`${count(now.quarantined, "damaged message")} put aside: see understudy queue quarantine list.`);
  if (now.policy.staged === "pending") list.push("The primary's new policy deletes a lot and waits for your word: see understudy policy pending.");
  for (const r of now.routes) if (r.without_xclient) list.push(`${r.name} takes us for the client of all mail: ${r.without_xclient}`);
  const ul = $("troubles");
  if (ul.dataset.says === list.join("\n")) return;
  ul.dataset.says = list.join("\n");
  ul.hidden = list.length === 0;
  ul.replaceChildren(...list.map((t) => el("li", "", t)));
}

function drawNumbers(now) {
  const waiting = now.messages - now.held;
  say("n-waiting", whole(waiting));
  say("n-waiting-more", [now.deferred ? `${whole(now.deferred)} deferred` : "", now.messages ? `${bytes(now.bytes)} kept` : ""].filter(Boolean).join(", "));
  say("n-held", whole(now.held));
  say("n-held-more", now.held ? "for you to settle" : "");
  const some = now.messages > 0 && now.oldest;
  say("n-oldest", some ? age(since(now, now.oldest)) : "–");
  say("n-oldest-more", some ? `since ${when(now.oldest)}` : "");
  const empty = now.empty_after_seconds;
  say("n-empty", !waiting ? "–" : empty === null ? "not yet" : age(empty));
  say("n-empty-more", `${rate(now.in_per_second)} in, ${rate(now.out_per_second)} out`);
}

// ---- the chart

function remember(now) {
  const p = [Date.parse(now.at) / 1000, now.messages - now.held, now.in_per_second, now.out_per_second, now.routes.every((r) => r.up) ? 1 : 0];
  for (const [name, max] of [["minutes", 600], ["day", 720]]) {
    const s = past[name], end = s.points.at(-1);
    if (end && p[0] <= end[0]) continue; // the history had it
    if (end && p[0] - end[0] < s.step * 0.75) continue;
    s.points.push(p);
    if (s.points.length > max) s.points.shift();
  }
}

function svg(tag, attributes, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}

/** The next round number that holds n. */
function roof(n) {
  const unit = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((k) => k * unit).find((k) => k >= n) ?? n;
}

let span = "minutes";
for (const radio of document.querySelectorAll("input[name=span]")) {
  radio.addEventListener("change", () => { span = radio.value; if (last) drawChart(); });
}

function drawChart() {
  const chart = $("chart"), { step } = past[span];
  const width = chart.clientWidth, height = chart.clientHeight;
  const end = Date.parse(last.at) / 1000;
  const long = Math.min(span === "minutes" ? 600 : 86400, Math.max(60, end - (past[span].points[0]?.[0] ?? end))); // no more than is known
  const begin = end - long;
  const tip = [end, last.messages - last.held, last.in_per_second, last.out_per_second, last.routes.every((r) => r.up) ? 1 : 0];
  const points = [...past[span].points.filter((p) => p[0] >= begin && p[0] < end), tip];
  const upper = { top: 18, bottom: height * 0.62 }, lower = { top: height * 0.62 + 24, bottom: height - 20 };
  const x = (t) => ((t - begin) / long) * width;
  const most = roof(Math.max(1, ...points.map((p) => p[1]))), fastest = roof(Math.max(1, ...points.map((p) => Math.max(p[2], p[3]))));
  const y = (box, v, max) => box.bottom - (Math.max(0, v) / max) * (box.bottom - box.top);
  const line = (box, k, max) => points.map((p, i) => `${i === 0 || p[0] - points[i - 1][0] > 5 * step ? "M" : "L"}${x(p[0]).toFixed(1)},${y(box, p[k], max).toFixed(1)}`).join("");
  const parts = [];
  for (let i = 0; i < points.length; i++) { // one rectangle for each time that it was down
    if (points[i][4]) continue;
    const from = i;
    while (i + 1 < points.length && !points[i + 1][4]) i++;
    const left = x(points[from][0]);
    parts.push(svg("rect", { class: "gone", x: left, y: 0, width: Math.max(2, x(points[i][0]) - left), height: lower.bottom }));
  }
  const first = x(points[0][0]).toFixed(1), right = x(end).toFixed(1);
  const area = `M${first},${upper.bottom}` + points.map((p) => `L${x(p[0]).toFixed(1)},${y(upper, p[1], most).toFixed(1)}`).join("") + `L${right},${upper.bottom}Z`;
  for (const box of [upper, lower]) {
    for (const at of [box.top, box.bottom]) parts.push(svg("line", { class: "rule", x1: 0, x2: width, y1: at, y2: at }));
  }
  parts.push(svg("path", { class: "area", d: area }), svg("path", { class: "depth", d: line(upper, 1, most) }));
  parts.push(svg("path", { class: "in", d: line(lower, 2, fastest) }), svg("path", { class: "out", d: line(lower, 3, fastest) }));
  parts.push(svg("text", { x: 2, y: upper.top - 5 }, count(most, "message")), svg("text", { x: 2, y: lower.top - 5 }, `${fastest} a second`));
  parts.push(svg("text", { x: 2, y: height - 4 }, clock(new Date(begin * 1000), long < 600)), svg("text", { x: width - 2, y: height - 4, "text-anchor": "end" }, clock(new Date(end * 1000), long < 600)));
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  chart.replaceChildren(...parts);
  const peak = Math.max(...points.map((p) => p[1]));
  say("chart-says", `${whole(tip[1])} waiting now, ${whole(peak)} at most in ${age(long)}.`);
}
addEventListener("resize", () => { if (last && !last.error) drawChart(); });

// ---- next hops, policy, answers

function drawHops(now) {
  const lines = now.routes.map((r) => {
    const d = now.destinations?.find((d) => d.name === r.name);
    const state = r.up ? el("span", "good", `up for ${age(since(now, r.since))}`)
      : down(r) ? el("span", "bad", `down for ${age(since(now, r.since))}`) : el("span", "", "being asked for the first time");
    const more = [r.live && r.up && !r.without_xclient ? "decides itself" : "", d?.sessions ? `${d.sessions} of ${count(d.allowed, "session")}` : ""].filter(Boolean);
    return el("li", "", el("strong", "", r.name), " ", el("span", "note", r.address), el("br"), state, more.length ? `, ${more.join(", ")}` : "");
  });
  $("hops").replaceChildren(...lines);
}

function drawPolicy(p, now) {
  if (!p.version) {
    say("policy", "None yet");
    say("policy-note", "Clients are answered 421 until there is one.");
    return;
  }
  const at = Date.parse(now.at) / 1000;
  say("policy", `Version ${whole(p.version)}, ${count(p.recipients, "recipient")}`);
  const vouched = p.signed ? `, the primary vouched for it ${age(at - p.signed)} ago` : ", from a file";
  const stale = p.state === "stale" ? " It is stale: the unknown are answered 450." : "";
  say("policy-note", `In force for ${age(at - p.loaded)}${vouched}.${stale}`);
}

/** How often the snapshot has agreed with the primary; hidden until it is known. */
function drawParity(now) {
  const p = now.parity;
  $("parity").hidden = !p;
  if (!p) return;
  const percent = (Math.floor(p.rate * 10000) / 100).toString(); // 100 only when all agreed
  say("parity-says", `${percent} % of ${count(p.decisions, "decision")} as the primary's`);
  say("parity-note", `In live sessions since ${when(p.since)}. ${p.unexplained ? `${count(p.unexplained, "difference")} unexplained: see understudy parity live.` : "No difference is unexplained."}`);
}

/** The secondaries that share the database; hidden where none is shared. */
function drawFleet(f, now) {
  $("fleet").hidden = !f;
  if (!f) return;
  const differ = f.members.filter((m) => m.policy_differs).length;
  say("fleet-note", [
    f.error ? `The others aren't heard of since ${f.at.startsWith("0001") ? "the start" : when(f.at)}: ${f.error}.` : `${whole(f.members.filter((m) => m.alive).length)} of ${count(f.members.length + f.more, "secondary", "secondaries")} alive.`,
    differ ? `${whole(differ)} ${differ === 1 ? "has" : "have"} another policy than the newest.` : "",
    f.adopts ? `The mail of ${f.adopts} is being moved here.` : "",
    f.more ? `${whole(f.more)} more: see understudy fleet.` : "",
  ].filter(Boolean).join(" "));
  const policy = (m) => [m.version ? `policy ${whole(m.version)}` : "policy from a file", m.digest].filter(Boolean).join(", ");
  $("members").replaceChildren(...f.members.map((m) => {
    const seen = m.seen_seconds < 0 ? "never heard of" : `silent for ${age(m.seen_seconds)}`;
    const state = m.alive ? el("span", "good", "alive") : el("span", "bad", seen);
    const percent = `${Math.round(m.share * 100)} %`;
    return el("li", "", el("strong", "", foreign(m.name)), m.name === f.self ? el("span", "note", " this one") : null, ", ", state, ", ", policy(m),
      m.policy_differs ? el("strong", "warn", " differs") : null,
      el("br"), el("span", "note", `${count(m.sessions, "client")}, relaying in ${count(m.relaying, "session")}; ${count(m.messages, "message")}, ${percent} of all, ${rate(m.out_per_second)} leaving`),
      m.problem ? el("p", "warn", foreign(m.problem)) : null);
  }));
}

function drawVerdicts(list) {
  $("verdicts").hidden = list.length === 0;
  say("verdicts-note", list.length ? "By the rule that decided, and when in a session." : "No rule has decided anything yet.");
  const tone = { reject: "bad", defer: "warn" };
  $("verdicts").tBodies[0].replaceChildren(...list.slice(0, 15).map((v) => el("tr", "",
    el("td", "", el("span", tone[v.action] ?? "", v.action), " ", v.rule, el("span", "note", ` at ${v.stage}`)),
    el("td", "", whole(v.recent)), el("td", "", whole(v.total)))));
}

function drawOutages(now) {
  const of = JSON.stringify(now.outages) + (now.outages.some((o) => !o.ended) ? age(since(now, now.outages.find((o) => !o.ended).began)) : "");
  if ($("outages").dataset.of === of) return; // a button keeps its focus
  const focus = document.activeElement?.dataset.of;
  $("outages").dataset.of = of;
  const lines = now.outages.map((o) => {
    const end = o.ended ?? now.at;
    const state = !o.ended ? el("span", "bad", "down now") : !o.drained ? el("span", "", "draining") : "";
    const name = o.route === "primary" ? "" : `${o.route}, `;
    return el("li", "", `${name}${when(o.began)}, for ${age((Date.parse(end) - Date.parse(o.began)) / 1000)}`, state ? ", " : "", state,
      el("br"), el("span", "note", `${whole(o.accepted)} accepted, ${whole(o.refused)} refused, ${whole(o.relayed)} relayed, ${whole(o.held)} held`),
      el("br"), reportButton(o));
  });
  $("outages").replaceChildren(...(lines.length ? lines : [el("li", "note", "None so far.")]));
  if (focus) document.querySelector(`[data-of="${CSS.escape(focus)}"]`)?.focus();
}

/** Saves an outage's report: a link couldn't send the token. */
function reportButton(o) {
  const b = el("button", "small", "Report", el("span", "alone", ` of outage ${o.id}`));
  b.type = "button";
  b.dataset.of = `report ${o.id}`;
  b.addEventListener("click", async () => {
    try {
      const response = await ask(`api/outages/${o.id}/report`);
      if (!response.ok) throw new Error(await refusal(response));
      const a = el("a", "");
      a.href = URL.createObjectURL(await response.blob());
      a.download = `outage-${o.id}.html`;
      a.click();
      setTimeout(() => URL.revokeObjectURL(a.href), 60_000);
    } catch (e) {
      say("more", `No report: ${e.message}.`);
    }
  });
  return b;
}

// ---- mail

const mailEvery = 2_000, mailAnyway = 60_000; // milliseconds
let mailAt = 0, mailOf = "", mailBusy = false;

/** Asks for the mail when the numbers have changed, and not too often. */
async function refreshMail(now, anew = false) {
  const of = `${now.accepted} ${now.messages} ${now.held} ${now.deferred}`;
  const old = Date.now() - mailAt;
  if (mailBusy || (!anew && old < (of === mailOf ? mailAnyway : mailEvery))) return;
  mailBusy = true;
  try {
    const response = await ask("api/mail");
    if (response.ok) drawMail(await response.json(), now);
    else mailUnseen(response.status === 403 ? "Envelopes are not shown to you; numbers are above." : await refusal(response));
    mailOf = of;
  } catch { /* the stream says that the line is dead */ } finally {
    mailAt = Date.now();
    mailBusy = false;
  }
}

function mailUnseen(why) {
  for (const id of ["held", "waiting"]) {
    $(id).replaceChildren();
    say(`${id}-note`, why);
  }
}

const reasons = { refused: "The primary refused it", expired: "It is too old", operator: "Held by an operator", policy: "Held by the policy" };

function why(r) {
  const said = r.reply || r.held_by;
  if (r.state === "held") return el("p", "why", reasons[r.reason] ?? "Held", said ? ": " : "", said ? foreign(said) : null);
  if (r.state === "deferred") return el("p", "why", `Deferred${r.next ? ` until ${when(r.next)}` : ""}`, said ? ": " : "", said ? foreign(said) : null);
  return null;
}

function mailLine(m, now, ...actions) {
  const li = el("li", "");
  for (const r of m.recipients) li.append(...[el("p", "to", foreign(r.address)), why(r)].filter(Boolean));
  if (m.more) li.append(el("p", "note", `and ${count(m.more, "recipient")} more`));
  li.append(el("p", "about", "from ", m.from ? foreign(m.from) : "nobody (a notification)", ` by `, foreign(m.client),
    ` · ${bytes(m.size)} · ${age(since(now, m.accepted))} ago · ${m.id}`));
  if (actions.length) li.append(el("div", "row", ...actions));
  return li;
}

function button(text, className, m, onclick) {
  const b = el("button", className, text, el("span", "alone", ` the message for ${m.recipients[0]?.address ?? m.id}`));
  b.type = "button";
  b.dataset.of = `${text} ${m.id}`;
  b.addEventListener("click", onclick);
  return b;
}

function drawMail(mail, now) {
  const focus = document.activeElement?.dataset.of;
  say("held-note", mail.held.length === 0 ? "None. Mail that the primary refuses after we took it is kept here." : mail.cut ? "There may be more: understudy queue list." : "");
  $("held").replaceChildren(...mail.held.map((m) => mailLine(m, now,
    mail.read ? button("Read", "", m, () => read(m)) : null, button("Release", "", m, () => settle(m, "release")), m.vouched ? button("Return", "", m, () => settle(m, "return")) : null, m.all_held ? button("Remove", "bad", m, () => settle(m, "remove")) : null)));
  const waiting = now.messages - now.held;
  say("waiting-note", waiting === 0 ? "Nothing waits." : waiting > mail.waiting.length ? `The first ${mail.waiting.length} of ${whole(waiting)}.` : "");
  $("waiting").replaceChildren(...mail.waiting.map((m) => mailLine(m, now, ...(mail.read ? [button("Read", "", m, () => read(m))] : []))));
  if (focus) document.querySelector(`[data-of="${CSS.escape(focus)}"]`)?.focus();
}

const asks = {
  release: ["Release this message?", "It goes back in line, and to the primary when its turn comes.", "Release"],
  return: ["Return this message?", "Its sender gets a report that it wasn't delivered, and the held recipients leave the queue.", "Return"],
  remove: ["Remove this message?", "It is deleted for good. Neither the sender nor the recipient hears of it.", "Remove"],
};

const envelope = (m) => ["from ", m.from ? foreign(m.from) : "nobody", " to ", foreign(m.recipients.map((r) => r.address).join(", "))];

async function read(m) {
  let said = "";
  try {
    const response = await ask(`api/mail/${encodeURIComponent(m.id)}/text`);
    said = response.ok ? await response.text() : `Not shown: ${await refusal(response)}.`;
  } catch {
    said = "Not shown: no connection.";
  }
  $("letter-mail").replaceChildren(...envelope(m));
  $("letter-text").replaceChildren(foreign(said));
  $("letter").showModal();
}

function confirmed(m, what) {
  const dialog = $("ask"), [title, text, yes] = asks[what];
  say("ask-title", title);
  say("ask-text", text);
  $("ask-mail").replaceChildren(...envelope(m));
  say("ask-yes", yes);
  $("ask-yes").className = what === "remove" ? "bad" : "";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function settle(m, what) {
  if (!(await confirmed(m, what))) return;
  let said = "";
  try {
    const response = await ask(`api/mail/${encodeURIComponent(m.id)}/${what}`, { method: "POST" });
    if (!response.ok) said = `Not done: ${await refusal(response)}.`;
  } catch {
    said = "Not done: no connection.";
  }
  await refreshMail(last, true);
  if (said) say("held-note", said);
  if (!document.activeElement || document.activeElement === document.body) $("held-title").focus();
}

// ---- for as long as the page is open

for (let wait = 1000; ; wait = Math.min(15_000, wait * 2)) {
  const began = Date.now();
  await listen();
  if (Date.now() - began > 30_000) wait = 1000;
  if ($("door").hidden) await new Promise((resolve) => setTimeout(resolve, wait));
  else wait = 500;
}
