// The page.  It shows what /api/v1/ answers and computes no figure of its own.
// Names come from strangers: every text is set as text, never as markup.
import { TEXTS } from "./texts.js";

const VIEWS = ["now", "users", "history", "restricted", "events", "doctor"];
const SORTS = ["rate", "down", "up", "full", "bytes", "flows", "addresses", "drops", "name"];
const POLL_MS = 2000;
const $ = (selector) => document.querySelector(selector);
const kept = (name, otherwise) => localStorage.getItem(`vff-qos-${name}`) ?? otherwise;
const keep = (name, value) => localStorage.setItem(`vff-qos-${name}`, value);

let language = kept("language", navigator.language.startsWith("ru") ? "ru" : "en");
let theme = kept("theme", "auto");
let paused = false;
let view = null;
const seen = { now: null, status: null, points: [], heard: 0, lost: "" };

// -- words ------------------------------------------------------------------------------------

const t = (key, ...values) => (TEXTS[language][key] ?? key).replace(/\{(\d)\}/g, (_, n) => values[n]);
const digits = (value, most = 3) => new Intl.NumberFormat(language, { maximumSignificantDigits: most }).format(value);
const whole = (value) => new Intl.NumberFormat(language).format(value);
function scaled(value, names, most) {
  let unit = 0;
  while (value >= 999.5 && unit < names.length - 1) { value /= 1000; unit += 1; }
  return `${digits(value, most)} ${t(names[unit])}`;
}
const rate = (bps) => scaled(bps, ["bps", "kbps", "mbps", "gbps"]);
const size = (bytes) => scaled(bytes, ["b", "kb", "mb", "gb", "tb"]);
const limit = (bps, ceil) => bps === null || bps === undefined ? t("no_class") : bps >= ceil ? t("unlimited") : rate(bps);
function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} ${t("s")}`;
  if (s < 5400) return `${Math.round(s / 60)} ${t("min")}`;
  return s < 172800 ? `${Math.round(s / 3600)} ${t("h")}` : `${Math.round(s / 86400)} ${t("d")}`;
}
const moment = (seconds) => new Date(seconds * 1000).toLocaleString(language, { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" });
const nowS = () => Date.now() / 1000;

// -- elements -----------------------------------------------------------------------------------

const NAMESPACES = { svg: "http://www.w3.org/2000/svg", path: "http://www.w3.org/2000/svg" };
function h(tag, fields = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = NAMESPACES[name] ? document.createElementNS(NAMESPACES[name], name) : document.createElement(name);
  if (classes.length) made.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(fields)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
const card = (title, ...children) => h("section.card", {}, title && h("h2", {}, title), ...children);
const empty = (key) => h("p.empty", {}, t(key));
const userLink = (email) => email.startsWith("(") ? email : h("a", { href: `#/user/${encodeURIComponent(email)}` }, email);
const held = (kind) => kind ? h(`span.chip.${kind}`, {}, t(`held_${kind}`)) : "";
function facts(pairs) {
  return h("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
function fill(share) {
  const inner = h(share > 0.9 ? "i.full" : "i");
  inner.style.width = `${Math.min(100, share * 100)}%`;
  return h("span.fill", { title: `${Math.round(share * 100)} %`, role: "img", "aria-label": `${Math.round(share * 100)} %` }, inner);
}
function spark(rates) {
  const top = Math.max(...rates, 1);
  const points = rates.map((value, n) => `${(n * 84 / (rates.length - 1)).toFixed(1)} ${(20.5 - value / top * 19).toFixed(1)}`);
  return h("svg.spark", { viewBox: "0 0 84 22", "aria-hidden": "true" }, h("path", { d: `M${points.join("L")}` }));
}

// -- asking ---------------------------------------------------------------------------------------

async function ask(path, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "" && value !== null));
  const answer = await fetch(`api/v1/${path}${query.size ? `?${query}` : ""}`);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}
function failed(error) { return h("p.error", { role: "alert" }, t("failed", error.message)); }

// -- plots ------------------------------------------------------------------------------------------

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
class Plot {
  constructor(place, { bars = false, form = rate, series, height = 240 }) {
    this.place = place;
    this.options = { bars, form, series, height };
    this.step = 0;
    this.data = [[], ...series.map(() => [])];
    this.make();
    this.sized = new ResizeObserver(() => this.chart.setSize({ width: Math.max(200, place.clientWidth), height }));
    this.sized.observe(place);
  }
  make() {
    const { bars, form, series, height } = this.options;
    const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { stroke: ink("--line"), width: 1 }, font: "12px system-ui, 'DejaVu Sans', sans-serif" };
    const clock = (value, by) => new Date(value * 1000).toLocaleString(language, by);
    const times = (_, splits) => {
      const long = splits.length > 1 && splits[splits.length - 1] - splits[0] > 2 * 86400;
      const short = !bars && splits.length > 1 && splits[1] - splits[0] < 60;
      const by = long ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit", second: short ? "2-digit" : undefined, hourCycle: "h23" };
      return splits.map((value) => clock(value, by));
    };
    this.chart?.destroy();
    this.chart = new uPlot({
      width: Math.max(200, this.place.clientWidth), height,
      scales: { x: { range: (_, low, high) => (bars ? [low - this.step, high + this.step] : [Math.min(low, high - 60), high]) }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1) * 1.08] } },
      cursor: { points: { size: 7 }, drag: { x: false, y: false } },
      axes: [{ ...axis, values: times, space: 70 }, { ...axis, values: (_, splits) => splits.map((v) => form(v)), size: 92 }],
      series: [
        { label: t("when"), value: (_, v) => (v === null ? "" : clock(v, { dateStyle: "short", timeStyle: bars ? "short" : "medium", hourCycle: "h23" })) },
        ...series.map(({ label, color, dash, soft }) => ({
          label, stroke: ink(color), width: bars ? 0 : 2, dash, points: { show: false },
          fill: bars ? ink(color) : soft ? undefined : `${ink(color)}1f`,
          paths: bars ? uPlot.paths.bars({ size: [0.42, 40], align: color === "--up" ? 1 : -1, radius: 0.15 }) : undefined,
          value: (_, v) => (v === null || v === undefined ? "" : form(v)),
        })),
      ],
    }, this.data, this.place);
  }
  show(data) { this.data = data; this.chart.setData(data); }
  end() { this.sized.disconnect(); this.chart.destroy(); }
}
const traffic = () => [{ label: t("download"), color: "--down" }, { label: t("upload"), color: "--up" }];

// -- views: each gives its element, and what to do when something is new ---------------------------

function nowView() {
  const figure = (key, up) => {
    const value = h("div.figure"), more = h("div.soft");
    const key_ = up === undefined ? null : h(up ? "span.key.up" : "span.key");
    return { box: h("div.card", {}, h("div.label", {}, key_, t(key)), value, more), value, more };
  };
  const down = figure("download", false), up = figure("upload", true), active = figure("active"), flows = figure("connections");
  const place = h("div.plot"), users = h("div"), left = h("div"), right = h("div");
  const element = h("div", {},
    h("div.grid", {}, [down, up, active, flows].map((one) => one.box)),
    card(t("traffic"), place),
    h("div.two", {}, left, right),
    card(t("busiest"), users, h("p", {}, h("a", { href: "#/users" }, t("all_users")))));
  let plot = null;
  const told = () => {
    const { now, status } = seen;
    plot ??= new Plot(place, { series: [...traffic()] });
    if (now) {
      for (const [box, name] of [[down, "download"], [up, "upload"]]) {
        const device = now.devices[name];
        box.value.replaceChildren(rate(device.rate_bps));
        const share = now.ceil_bps ? `${t("of", rate(now.ceil_bps))}` : "";
        box.more.replaceChildren([share, t("nobodys", rate(device.unclassified_bps))].filter(Boolean).join(" · "));
      }
      active.value.replaceChildren(whole(now.active));
      active.more.replaceChildren(t("of_users", whole(now.users)));
      flows.value.replaceChildren(whole(now.connections));
      flows.more.replaceChildren(t("restricted_now", whole(status?.restricted?.flows ?? 0)));
      users.replaceChildren(now.top.length ? userTable(now.top, now.ceil_bps, { short: true }) : empty("none"));
    }
    plot.show([0, 1, 2].map((column) => seen.points.map((point) => point[column])));
    if (status) {
      const wrong = status.findings.filter((finding) => finding.level !== "OK");
      left.replaceChildren(card(t("findings"), wrong.length ? wrong.map(finding_) : empty("none_found")),
        card(t("orders"), status.overrides.length ? orderTable(status.overrides.slice(0, 8)) : empty("no_orders")));
      right.replaceChildren(card(t("agent"), agentFacts(status)));
    }
  };
  return { element, told, end: () => plot?.end() };
}

function agentFacts(status) {
  const agent = status.follower;
  const own = status.wan ? [[t("devices"), `${status.wan}, ${status.ifb}`]] : [[t("devices"), t("not_set_up")]];
  if (!agent) return [h("p.error", {}, t("no_agent")), facts(own)];
  const { sources, repair } = agent;
  const several = sources.length > 1;
  const aboutSource = (source) => [
    [several ? `${t("source")}: ${source.name}` : t("source"), source.waiting ? `${source.origin}: ${source.waiting}` : source.origin],
    [t("last_claim"), source.last_claim_s ? t("ago", span(status.time - source.last_claim_s)) : t("never")],
    [t("lines"), digits(source.lines_per_s)],
    [t("lag"), `${digits(source.lag_s)} ${t("s")}`],
  ];
  return facts([
    [t("since"), agent.started ? `${moment(agent.started)} · ${t("version", agent.version)}` : null],
    ...sources.flatMap(aboutSource),
    [t("marks"), whole(agent.marked ?? 0)],
    [t("repairs"), whole(agent.repairs)],
    [t("healed"), repair.healed_s ? `${moment(repair.healed_s)}: ${repair.changes.join("; ")}` : t("never")],
    ...own,
  ]);
}

function finding_(finding) {
  return h("div.finding", {}, h("div", {}, h(`span.badge.${finding.level}`, {}, finding.level)),
    h("div.body", {}, finding.sentence,
      finding.evidence.length ? h("pre", {}, finding.evidence.join("\n")) : null,
      finding.remedy ? h("div.do", {}, h("b", {}, `${t("todo")}: `), finding.remedy) : null));
}

function orderTable(orders) {
  const what = (entry) => Object.entries(entry).map(([key, value]) => `${key} ${value}`).join(", ");
  return h("div.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, ["who", "what", "until", "by", "reason"].map((key) => h("th", { scope: "col" }, t(key))))),
    h("tbody", {}, orders.map((order) => h("tr", {}, h("td", {}, userLink(order.email)), h("td", {}, what(order.entry)),
      h("td", {}, order.until ? moment(order.until) : t("for_good")),
      h("td", {}, order.origin === "operator" ? order.who || t("operator") : order.origin), h("td.wrap", {}, order.why))))));
}

const COLUMNS = [
  ["user", (u) => userLink(u.email), "", "name"], ["down_now", (u) => rate(u.down_rate_bps), "n", "down"], ["up_now", (u) => rate(u.up_rate_bps), "n", "up"],
  ["minute", (u) => spark(u.minute), "narrow-no", ""], ["full", (u) => fill(u.share), "", "full"], ["held", (u) => held(u.held_by), "", ""],
  ["limit", (u, ceil) => `${limit(u.download_bps, ceil)} / ${limit(u.upload_bps, ceil)}`, "n.narrow-no", ""],
  ["flows", (u) => whole(u.flows), "n", "flows"], ["addresses", (u) => whole(u.addresses), "n.narrow-no", "addresses"], ["drops", (u) => whole(u.drops), "n.narrow-no", "drops"],
];
function userTable(users, ceil, { short = false, sort = "", pick = null } = {}) {
  const columns = short ? COLUMNS.slice(0, 8) : COLUMNS;
  const classed = (tag, classes) => (classes ? `${tag}.${classes}` : tag);
  return h("div.scroll", {}, h("table", {},
    h("thead", {}, h("tr", {}, columns.map(([key, , classes, by]) => h(classed("th", classes),
      { scope: "col", "aria-sort": by && by === sort ? (by === "name" ? "ascending" : "descending") : null },
      pick && by ? h("button", { type: "button", onclick: () => pick(by) }, t(key)) : t(key))))),
    h("tbody", {}, users.map((user) => h("tr.link", { tabindex: -1, "data-user": user.email, onclick: (event) => { if (event.target.tagName !== "A") open_(user.email); } },
      columns.map(([, cell, classes]) => h(classed("td", classes), {}, cell(user, ceil))))))));
}
function open_(email) { if (!email.startsWith("(")) location.hash = `#/user/${encodeURIComponent(email)}`; }

function usersView() {
  const state = { match: kept("match", ""), sort: kept("sort", "rate"), limit: 50, asked: 0 };
  const search = h("input", { type: "search", id: "search", value: state.match, placeholder: t("search"), "aria-label": t("search") });
  const sort = h("select", { "aria-label": t("sort") }, SORTS.map((name) => h("option", { value: name, selected: name === state.sort }, t(`sort_${name}`))));
  const pause = h("button", { type: "button", id: "pause", onclick: togglePause }, t("pause"));
  const count = h("span.soft"), table = h("div"), more = h("button", { type: "button", onclick: () => { state.limit = Math.min(500, state.limit + 100); load(); } }, t("more"));
  const element = h("div", {}, h("div.row", {}, search, h("label.soft", {}, `${t("sort")} `, sort), count, h("span.grow"), pause), h("section.card", {}, table), more);
  const pattern = () => { const text = state.match.trim(); return !text || /[*?[]/.test(text) ? text : `*${text}*`; };
  async function load() {
    const number = state.asked += 1;
    try {
      const found = await ask("users", { match: pattern(), sort: state.sort, limit: state.limit });
      if (number !== state.asked) return;
      const at = document.activeElement?.closest("tr")?.dataset.user;
      count.replaceChildren(t("found", whole(found.total)));
      table.replaceChildren(found.users.length ? userTable(found.users, seen.now?.ceil_bps ?? Infinity, { sort: state.sort, pick }) : empty("none"));
      more.hidden = found.users.length >= found.total || state.limit >= 500;
      if (at) [...table.querySelectorAll("tr")].find((row) => row.dataset.user === at)?.focus();
    } catch (error) { table.replaceChildren(failed(error)); }
  }
  function pick(name) { state.sort = sort.value = name; keep("sort", name); load(); }
  sort.addEventListener("change", () => pick(sort.value));
  let typing;
  search.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => { state.match = search.value; keep("match", state.match); load(); }, 200); });
  load();
  return { element, told: () => {}, tick: load };
}

function userView(email) {
  const head = h("div"), place = h("div.plot"), why = h("div"), flows = h("div"), past = historyCard(email);
  const element = h("div", {}, h("p", {}, h("a", { href: "#/users" }, `‹ ${t("users")}`)), h("h1", {}, email), head,
    card(t("live"), place), past.element, h("div.two", {}, why), flows);
  let plot = null;
  const points = [];
  async function load() {
    try {
      const found = await ask("users", { email });
      const [user] = found.users;
      plot ??= new Plot(place, { series: traffic(), height: 200 });
      if (!user) { head.replaceChildren(h("p.card.soft", {}, t("gone"))); return; }
      points.push([found.time, user.down_rate_bps, user.up_rate_bps]);
      if (points.length > 300) points.shift();
      plot.show([0, 1, 2].map((n) => points.map((point) => point[n])));
      const ceil = seen.now?.ceil_bps ?? Infinity;
      const box = (key, value, more, up) => h("div.card", {}, h("div.label", {}, up === undefined ? null : h(up ? "span.key.up" : "span.key"), t(key)), h("div.figure", {}, value), h("div.soft", {}, more));
      head.replaceChildren(h("div.grid", {},
        box("download", rate(user.down_rate_bps), t("of", limit(user.download_bps, ceil)), false),
        box("upload", rate(user.up_rate_bps), t("of", limit(user.upload_bps, ceil)), true),
        box("full", h("span", {}, `${Math.round(user.share * 100)} % `, fill(user.share)), user.held_by ? held(user.held_by) : "—"),
        box("connections", whole(user.flows), `${t("addresses")} ${whole(user.addresses)} · ${t("drops")} ${whole(user.drops)}`)));
    } catch (error) { head.replaceChildren(failed(error)); }
  }
  async function explain() {
    try {
      const found = await ask("explain", { email });
      const holding = Object.entries(found.holding).map(([name, one]) => [t(name), `${rate(one.rate_bps)}, ${one.by}; ${digits(one.delay_ms)} ${t("ms")}`]);
      why.replaceChildren(
        card(t("why"), facts([[t("decided"), found.decided_by], [t("rule"), `${found.rule.kind} ${found.rule.name}`], [t("plan"), found.plans?.[0] ?? found.rule.plan],
          [t("weight"), String(found.limits.weight)], [t("klass"), found.class ? `${found.class.classid} · ${t("mark")} ${found.class.mark}` : t("no_class")],
          ...holding, [t("said_last"), found.named_s ? t("ago", span(nowS() - found.named_s)) : null]])));
      why.append(card(t("rule"), h("dl", {}, found.layers.flatMap((layer) => [h("dt", {}, layer.name),
        h("dd", {}, Object.entries(layer.gives).map(([key, value]) => `${key} ${value}`).join(", ") || "—", h("div.soft", {}, layer.where))])),
        found.overrides?.length ? orderTable(found.overrides) : null));
      flows.replaceChildren(card(`${t("conn_of")}: ${whole(found.flows.length)}`, found.flows.length ? flowTable(found.flows) : empty("no_flows")));
    } catch (error) { why.replaceChildren(card(t("why"), failed(error))); }
  }
  load(); explain();
  return { element, told: () => {}, tick: load, end: () => { plot?.end(); past.end(); } };
}

function flowTable(flows) {
  const said = (flow) => flow.why || (flow.said.length ? `${flow.said.at(-1).when} ${flow.said.at(-1).email ?? ""}` : flow.unsaid);
  return h("div.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, ["flow", "age", "bytes", "who_says"].map((key) => h("th", { scope: "col" }, t(key))))),
    h("tbody", {}, flows.slice(0, 200).map((flow) => h("tr", {}, h("td", {}, h("code", {}, flow.flow), flow.restricted ? [" ", held("restricted")] : null),
      h("td.n", {}, flow.age_s === null ? "" : span(flow.age_s)), h("td.n", {}, flow.up_bytes === null ? "" : `${size(flow.down_bytes)} / ${size(flow.up_bytes)}`), h("td.wrap", {}, said(flow)))))));
}

function historyCard(email = "") {
  const RANGES = { day_1: ["24h", "hour"], day_7: ["7d", "hour"], day_31: ["31d", "day"], day_400: ["400d", "day"] };
  let range = kept("range", "day_1"), plot = null, asked = 0;
  const buttons = h("div.row", { role: "group" }), sums = h("div.grid"), place = h("div.plot"), note = h("p.soft");
  const element = card(t("history"), buttons, sums, place, note);
  async function load() {
    const number = asked += 1;
    buttons.replaceChildren(...Object.keys(RANGES).map((key) => h("button", { type: "button", "aria-pressed": String(key === range), onclick: () => { range = key; keep("range", key); load(); } }, t(key))));
    const [since, by] = RANGES[range];
    try {
      const found = await ask("usage", { email, since, by });
      if (number !== asked) return;
      const { users } = found;
      plot ??= new Plot(place, { bars: true, form: size, series: traffic(), height: 260 });
      const spans = new Map(users.spans.map((one) => [one.since, one]));
      const step = by === "hour" ? 3600 : 86400;
      // An hour without traffic has no row: it is 0, and has its place.
      const times = [...spans.keys()];
      for (let at = found.since; at < found.until; at += step) if (!times.some((time) => Math.abs(time - at) < step / 2)) times.push(at);
      times.sort((a, b) => a - b);
      plot.step = step * 0.6;
      plot.show([times, times.map((at) => spans.get(at)?.download_bytes ?? 0), times.map((at) => spans.get(at)?.upload_bytes ?? 0)]);
      const box = (key, value, up) => h("div.card", {}, h("div.label", {}, up === undefined ? null : h(up ? "span.key.up" : "span.key"), t(key)), h("div.figure", {}, size(value)));
      const others = found.others.download_bytes + found.others.upload_bytes;
      sums.replaceChildren(box("download", users.download_bytes, false), box("upload", users.upload_bytes, true), box("total", users.download_bytes + users.upload_bytes), ...(email ? [] : [box("nobody", others)]));
      note.replaceChildren(`${t(by === "hour" ? "by_hour" : "by_day")}; ${t("counted", found.read ? moment(found.read) : t("never"))}`);
    } catch (error) { note.replaceChildren(failed(error)); }
  }
  load();
  return { element, told: () => {}, load, end: () => plot?.end() };
}
const historyView = () => historyCard();

function restrictedView() {
  const classes = h("div"), orders = h("div"), doubts = h("div");
  const element = h("div", {}, card(t("restricted"), h("p.soft", {}, t("restricted_lead")), classes), card(t("orders"), orders), card(t("doubts"), doubts));
  async function load() {
    try {
      const found = await ask("restricted");
      classes.replaceChildren(...(found.classes.length ? found.classes.map((one) => h("div", {}, h("h3", {}, `${one.who} `, h("span.soft", {}, t("since_when", moment(one.since)))), one.flows.length ? flowTable(one.flows) : empty("no_flows"), h("br"))) : [empty("nobody_restricted")]));
      orders.replaceChildren(found.orders.length ? orderTable(found.orders) : empty("no_orders"));
    } catch (error) { classes.replaceChildren(failed(error)); }
    try {
      const [distrust, conflict] = await Promise.all(["distrust", "conflict"].map((kind) => ask("events", { kind, limit: 20 })));
      const all = [...distrust.events, ...conflict.events].sort((a, b) => b.time - a.time);
      doubts.replaceChildren(all.length ? eventTable(all) : empty("no_events"));
    } catch (error) { doubts.replaceChildren(failed(error)); }
  }
  load();
  return { element, told: () => {} };
}

const LEVELS = { 3: "TROUBLE", 4: "DEGRADED" };
function eventTable(events) {
  return h("div", {}, events.map((event) => h("div.finding", {}, h("div.soft", {}, moment(event.time)),
    h("div.body", {}, LEVELS[event.priority] ? [h(`span.badge.${LEVELS[event.priority]}`, {}, event.kind), " "] : [h("span.chip", {}, event.kind), " "], h("b", {}, event.title), h("div", {}, event.message),
      event.fields.changes ? h("pre", {}, event.fields.changes) : null, event.remedy && LEVELS[event.priority] ? h("div.do", {}, h("b", {}, `${t("todo")}: `), event.remedy) : null))));
}
function eventsView() {
  const KINDS = ["", "healed", "repair_failed", "policy_refused", "settings_refused", "override", "penalty", "distrust", "conflict", "flood", "source", "started", "stopped", "disabled", "enabled", "suspended", "resumed"];
  const kind = h("select", { "aria-label": t("kind"), onchange: () => load() }, KINDS.map((name) => h("option", { value: name }, name || t("all_kinds"))));
  const list = h("div");
  const element = h("div", {}, h("div.row", {}, h("span.soft.grow", {}, t("events_lead")), h("label.soft", {}, `${t("kind")} `, kind)), h("section.card", {}, list));
  async function load() {
    try {
      const found = await ask("events", { kind: kind.value, limit: 100 });
      list.replaceChildren(found.events.length ? eventTable(found.events) : empty("no_events"));
    } catch (error) { list.replaceChildren(failed(error)); }
  }
  load();
  return { element, told: () => {} };
}

function doctorView() {
  const element = h("div", {});
  async function load() {
    try {
      const found = await ask("doctor");
      if (found.time === null) { element.replaceChildren(card("", empty("never_looked"))); return; }
      const age = nowS() - found.time, well = found.findings.filter((finding) => finding.level === "OK");
      const wrong = found.findings.filter((finding) => finding.level !== "OK");
      element.replaceChildren(
        h("div.row", {}, h(`span.badge.${found.verdict}`, {}, found.verdict), h("span", {}, found.reason || t("well"))),
        h("p.soft", {}, t("doctor_lead", span(age))), ...(age > 1200 ? [h("p.error", { role: "alert" }, t("doctor_old"))] : []),
        ...(wrong.length ? [card(t("findings"), wrong.map(finding_))] : []), card(t("well_found"), well.map(finding_)));
    } catch (error) { element.replaceChildren(failed(error)); }
  }
  load();
  return { element, told: () => {} };
}

// -- the frame -----------------------------------------------------------------------------------------

function paint() {
  const dark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
function frame() {
  paint();
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const [id, text, label] of [["theme", t(`theme_${theme}`), t("theme_label")], ["language", t("language"), t("language_label")], ["keys", "?", t("keys_label")]]) {
    $(`#${id}`).textContent = text;
    $(`#${id}`).setAttribute("aria-label", `${label}: ${text}`);
    $(`#${id}`).title = label;
  }
  $("#host").textContent = location.hostname;
  route();
}
function route() {
  const [, name = "now", rest = ""] = location.hash.split("/");
  const made = { now: nowView, users: usersView, history: historyView, restricted: restrictedView, events: eventsView, doctor: doctorView };
  const tab = name === "user" ? "users" : name in made ? name : "now";
  $("#tabs").replaceChildren(...VIEWS.map((one, n) => h("a", { href: `#/${one}`, "aria-current": one === tab ? "page" : null, title: String(n + 1) }, t(one))));
  view?.end?.();
  view = name === "user" ? userView(decodeURIComponent(rest)) : made[tab]();
  $("#main").replaceChildren(view.element);
  document.title = `${name === "user" ? decodeURIComponent(rest) : t(tab)} · vff-qos`;
  $("#tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  tell();
}
function tell() {
  const bar = $("#verdict"), [badge, reason, age] = bar.children, { now } = seen;
  const level = seen.lost ? "lost" : now?.verdict ?? "";
  if (bar.className !== level) bar.className = level;
  const put = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  put(badge, seen.lost ? t("lost") : now?.verdict ?? "…");
  put(reason, seen.lost || (now ? now.reason || t("well") : t("waiting")));
  put(age, now && (seen.lost || paused) ? t("ago", span(nowS() - now.time)) : "");
  view?.told();
}
function togglePause() {
  paused = !paused;
  const button = $("#pause");
  if (button) { button.textContent = t(paused ? "go_on" : "pause"); button.setAttribute("aria-pressed", String(paused)); }
}
function listen() {
  const stream = new EventSource("api/v1/stream");
  stream.addEventListener("now", (event) => {
    if (paused) return;
    seen.now = JSON.parse(event.data);
    seen.lost = "";
    const { devices, time } = seen.now;
    if (!seen.points.length || seen.points.at(-1)[0] < time - 0.5) seen.points.push([time, devices.download.rate_bps, devices.upload.rate_bps]);
    if (seen.points.length > 300) seen.points.shift();
    tell();
  });
  stream.addEventListener("status", (event) => { seen.status = JSON.parse(event.data); tell(); });
  stream.addEventListener("trouble", (event) => { seen.lost = JSON.parse(event.data).error; tell(); });
  stream.addEventListener("error", () => {
    seen.lost = t("lost_reason");
    tell();
    // A browser asks again by itself but where it was refused.
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  });
}
function help() {
  const keys = [["1 … 6", "key_tabs"], ["/", "key_search"], ["j  k", "key_move"], ["Enter", "key_open"], ["Esc", "key_back"], ["p", "key_pause"], ["t", "key_theme"], ["l", "key_lang"], ["?", "key_help"]];
  $("#help").replaceChildren(h("h2", {}, t("help")), facts(keys.map(([key, text]) => [h("kbd", {}, key), t(text)])), h("br"), h("button", { type: "button", autofocus: true, onclick: () => $("#help").close() }, t("close")));
  $("#help").showModal();
}
function nextTheme() { const all = ["auto", "light", "dark"]; theme = all[(all.indexOf(theme) + 1) % 3]; keep("theme", theme); frame(); }
function nextLanguage() { language = language === "en" ? "ru" : "en"; keep("language", language); frame(); }
function move(by) {
  const rows = [...document.querySelectorAll("tr[data-user]")];
  const at = rows.indexOf(document.activeElement?.closest("tr"));
  rows[Math.max(0, Math.min(rows.length - 1, at + by))]?.focus();
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("#help").open) return;
  const typing = ["INPUT", "SELECT"].includes(document.activeElement?.tagName);
  if (event.key === "Escape") { if (typing) document.activeElement.blur(); else if (location.hash.startsWith("#/user/")) location.hash = "#/users"; return; }
  if (typing) return;
  const row = document.activeElement?.closest("tr[data-user]");
  if (event.key >= "1" && event.key <= "6") location.hash = `#/${VIEWS[event.key - 1]}`;
  else if (event.key === "/") { if (!$("#search")) location.hash = "#/users"; setTimeout(() => $("#search")?.focus(), 30); }
  else if (event.key === "j" || event.key === "ArrowDown" && row) move(1);
  else if (event.key === "k" || event.key === "ArrowUp" && row) move(-1);
  else if (event.key === "Enter" && row && document.activeElement === row) open_(row.dataset.user);
  else if (event.key === "p") togglePause();
  else if (event.key === "t") nextTheme();
  else if (event.key === "l") nextLanguage();
  else if (event.key === "?") help();
  else return;
  event.preventDefault();
});
$("#theme").addEventListener("click", nextTheme);
$("#language").addEventListener("click", nextLanguage);
$("#keys").addEventListener("click", help);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme === "auto" && frame());
addEventListener("hashchange", () => { route(); $("#main").focus({ preventScroll: true }); });
setInterval(() => { if (!paused && !document.hidden) view?.tick?.(); tell(); }, POLL_MS);
paint();
ask("live").then((found) => { seen.now ??= found.now; seen.points = found.points.map((point) => point.slice(0, 3)); tell(); }).catch(() => {});
listen();
frame();
