// What the views share: words for figures and times, tables, dialogs, news, CSV. Text from the API is only ever set as
// text: no markup and no link is made of it, except links within this page.

import { atom, expected, now, pages, queryOf, refresh, second, session, timeNow } from './api.js';
import { html, useEffect, useRef, useState } from './preact-htm.js';

/* the address */

/** `#/sale/tee?cursor=a` as `{ path: ['sale', 'tee'], query: { cursor: 'a' } }`. */
export const readRoute = () => {
  const [path, query] = location.hash.slice(2).split('?');
  const decode = (part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  };
  return {
    path: (path || 'sale').split('/').map(decode),
    query: Object.fromEntries(new URLSearchParams(query)),
  };
};

/** The address of a view: `to(['sale', id], { cursor })`. */
export const to = (path, query) => `#/${path.map(encodeURIComponent).join('/')}${queryOf(query)}`;
export const go = (path, query) => {
  location.hash = to(path, query);
};

/* words */

const format = (options) => new Intl.DateTimeFormat('en-GB', options);
const CLOCK = format({ hour: '2-digit', minute: '2-digit', second: '2-digit' });
const DAY = format({ day: 'numeric', month: 'short' });
const YEAR = format({ day: 'numeric', month: 'short', year: 'numeric' });

export const clock = (time) => CLOCK.format(new Date(time));
const day = (time, form = YEAR) => form.format(new Date(time));
const when = (time) => {
  if (day(time) === day(now())) return clock(time);
  return `${day(time, day(time).slice(-4) === day(now()).slice(-4) ? DAY : YEAR)}, ${clock(time)}`;
};
/** A column of times. */
export const at = (name) => (row) => html`<${Time} t=${row[name]} />`;
export const Time = ({ t }) => (t ? html`<time datetime=${t} title=${t}>${when(t)}</time>` : '–');

/** A figure; what is none stays as it is. */
export const num = (value) => (isNaN(value) ? value : Number(value).toLocaleString('en'));
export const sumOf = (rows, field) => rows.reduce((sum, row) => sum + row[field], 0);
export const plural = (count, word) => `${num(count)} ${word}${count === 1 ? '' : 's'}`;
export const words = (code) => String(code).replaceAll('_', ' ');

export const money = (minor, currency, exponent) => {
  const options = { minimumFractionDigits: exponent, maximumFractionDigits: exponent };
  return `${(minor / 10 ** exponent).toLocaleString('en', options)} ${currency}`;
};

/** `4:05` or `1:02:03`. */
const countdown = (seconds) => {
  const two = (value) => String(Math.floor(value)).padStart(2, '0');
  const minutes = `${seconds < 3_600 ? Math.floor(seconds / 60) : two((seconds / 60) % 60)}:${two(seconds % 60)}`;
  return seconds < 3_600 ? minutes : `${Math.floor(seconds / 3_600)}:${minutes}`;
};
const UNITS = [[86_400, 'day'], [3_600, 'h'], [60, 'min'], [1, 's']];
const amount = (count, unit) => `${num(count)} ${unit}${unit === 'day' && count !== 1 ? 's' : ''}`;
/** `100 s`, `10 min`, `1 day`: exactly. */
export const length = (seconds) => {
  const [size, unit] = UNITS.find(([size]) => seconds >= size && seconds % size === 0) ?? [1, 's'];
  return amount(seconds / size, unit);
};
/** `45 s`, `1.7 min`, `12 min`. */
export const about = (seconds) => {
  const [size, unit] = UNITS.find(([size]) => seconds >= size) ?? [1, 's'];
  const count = seconds / size;
  return amount(size > 1 && count < 9.95 ? Math.round(10 * count) / 10 : Math.round(count), unit);
};

export const Countdown = ({ t }) => {
  second.use();
  const left = (Date.parse(t) - now()) / 1_000;
  return html`<span class=${left < 30 ? 'n soon' : 'n'} title=${t}>${left > 0 ? countdown(left) : 'ended'}</span>`;
};
/** How long ago a time of this browser's clock was. */
export const Age = ({ at }) => {
  second.use();
  return about(Math.max(0, Math.floor((Date.now() - at) / 1_000)));
};

const TONES = {
  on_sale: 'good', held: 'calm', confirmed: 'good', open: 'bad', retrying: 'calm', consistent: 'good', drift: 'bad', failed: 'bad', changing: 'calm',
};
export const mono = (text, none = '–') => html`<span class="mono">${text ?? none}</span>`;
export const status = ({ state, status = state }) => html`<span class="chip ${TONES[status] ?? ''}">${words(status)}</span>`;
export const Id = ({ id, plain }) => html`<span class="id ${plain ? '' : 'mono'}" title=${id}>${id.length > 20 ? `${id.slice(0, 12)}…` : id}</span>`;

/** The ids that lead to a request's lines in the logs, and to its trace. */
export const logged = ({ request_id, trace_id }) => Object.entries({ Request: request_id, Trace: trace_id }).map(([name, id]) => id && html` <span class="muted">${name} <${Id} id=${id} /></span>`);

/** A bar of a product's units. The numbers beside it say the same to those who do not see it. */
export const Bar = ({ product: { available, reserved, sold, total }, tall }) => {
  const part = (units) => ({ width: `${total ? (100 * units) / total : 0}%` });
  const label = `${num(available)} available, ${num(reserved)} held, ${num(sold)} sold of ${num(total)}`;
  return html`<div class="bar ${tall ? 'tall' : ''}" role="img" aria-label=${label} title=${label}>
    <i class="sold" style=${part(sold)} /><i class="held" style=${part(reserved)} />
  </div>`;
};

/* lists */

/**
 * A table; on a phone, each row is a card, headed by the column of the class `first`. A column is `[name, cell(row),
 * class]`. `select` is `{ can(row), has(id), set(ids, on) }`. A `failure` stands above the rows of before.
 */
export const Table = ({ label, columns, rows, id, stale, empty, failure, select }) => {
  if (!rows) return html`<div class="empty tallest">${failure ? failure.message : 'Loading …'}</div>`;
  const old = failure && html`<p class="bad">${failure.message} This was read before.</p>`;
  if (!rows.length) return html`${old}<div class="empty">${empty}</div>`;
  const shown = columns.filter(Boolean);
  const check = (name, some) => html`<input type="checkbox" aria-label="Select ${name}" checked=${some.every((row) => select.has(id(row)))}
    onChange=${(event) => select.set(some.map(id), event.target.checked)} />`;
  return html`${old}<div class="scroll" role="region" aria-label=${label} tabindex="0"><table class=${stale ? 'stale' : ''}>
    <thead><tr>${select && html`<th class="check" scope="col">${check(`all of ${label}`, rows.filter(select.can))}</th>`}
      ${shown.map(([name, , style]) => html`<th scope="col" class=${style}>${name}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${id(row)}>
      ${select && html`<td class="check">${select.can(row) && check(id(row), [row])}</td>`}
      ${shown.map(([name, cell, style]) => html`<td data-name=${name} class=${style}><div>${cell(row)}</div></td>`)}</tr>`)}</tbody>
  </table></div>`;
};

/** The head of a view, or of a panel. */
export const Head = ({ title, panel, beside, children }) => html`<header class="head">
  ${panel ? html`<h2>${title}</h2>` : html`<h1>${title}</h1>`}${beside}<span class="grow" />${children}</header>`;
export const Facts = ({ of }) => html`<dl class="facts">${of.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
export const Tiles = ({ of }) => html`<dl class="tiles">${of.map(([name, value, note, key]) => html`<div>
  <dt>${key && html`<i class="key ${key}" /> `}${name}</dt><dd class="n">${value}</dd>${note && html`<dd><small>${note}</small></dd>`}</div>`)}</dl>`;
export const Back = ({ path, title, id }) => html`<p class="back"><a href=${to(path)}>${title}</a> / ${mono(id)}</p>`;

export const Product = ({ of: { product_id, name } }) => html`<a href=${to(['sale', product_id])}><b>${name}</b><span class="mono muted">${product_id}</span></a>`;
const pageOf = (id) => (id.startsWith('rsv_') ? to(['reservations', id]) : id.startsWith('fc_') ? to(['actions'], { target: id }) : id === 'failed-confirmations' ? to(['failed']) : to(['sale', id]));
export const Target = ({ id }) => html`<a href=${pageOf(id)}><${Id} id=${id} /></a>`;

/** Links to the first and the next page of a list; where it is stands in the address. */
export const Pager = ({ path, query, next, of = 'cursor', children }) => html`<nav class="pager" aria-label="Pages: ${of}">
  ${children}<span class="grow" />
  ${query[of] && html`<a class="button" href=${to(path, { ...query, [of]: '' })}>First page</a>`}
  ${next && html`<a class="button" href=${to(path, { ...query, [of]: next })}>Next page</a>`}
</nav>`;

/* news */

/** `{ id, text, bad }`: what just happened. */
export const news = atom([]);
export const tell = (text, bad = false) => {
  const item = { id: crypto.randomUUID(), text, bad };
  news.set([...news.get().slice(-1), item]);
  setTimeout(() => news.set(news.get().filter((other) => other !== item)), bad ? 15_000 : 8_000);
};

/* dialogs */

const dialog = atom(null);
session.watch(() => session.get() || dialog.set(null));

/**
 * Asks before something is done. `fields` are `{ name, label, type, value, help, show(values), ... }`;
 * `send(values, key, progress)` does it and returns what to tell. The key is made once: sending again is safe.
 */
export const ask = (options) => dialog.set({ fields: [], ...options, key: crypto.randomUUID() });

export const Dialog = () => {
  const options = dialog.use();
  return options && html`<${Asking} key=${options.key} ...${options} key_=${options.key} />`;
};

const Asking = ({ title, text, fields, action, danger, send, key_ }) => {
  const box = useRef();
  const [values, setValues] = useState(() => Object.fromEntries(fields.map(({ name, value }) => [name, value ?? ''])));
  const [{ busy, said, failed, unsure }, setState] = useState({});
  useEffect(() => box.current.showModal(), []);
  const submit = async (event) => {
    event.preventDefault();
    setState({ busy: true, said: 'Sending …' });
    try {
      const result = await send(values, key_, (said) => setState({ busy: true, said }));
      box.current?.close();
      if (result) tell(result);
      refresh();
    } catch (failure) {
      if (!(failure instanceof RangeError)) expected(failure);
      const unsure = failure.down;
      setState({ unsure, failed: true, said: `${failure.message}${failure.request ?? ''}${unsure ? ' It may have been done. It is safe to send it again.' : ''}` });
    }
  };
  const input = (field) => {
    const { name, label, type = 'text', options, help, show, value: _, ...rest } = field;
    if (show && !show(values)) return null;
    const set = ({ target }) => setValues((before) => ({ ...before, [name]: type === 'checkbox' ? target.checked : target.value }));
    const hint = typeof help === 'function' ? help(values) : help;
    const [described, small] = hint === undefined ? [] : [`h-${name}`, html`<small id="h-${name}">${hint}</small>`];
    const all = { ...rest, id: `f-${name}`, name, onInput: set, disabled: busy, 'aria-describedby': described };
    if (type === 'radio') {
      return html`<fieldset><legend>${label}</legend>${options.map(([option, text]) => html`<label class="choice">
        <input type="radio" name=${name} value=${option} checked=${values[name] === option} onInput=${set}
          disabled=${busy} required=${rest.required} /> ${text}</label>`)}${small}</fieldset>`;
    }
    if (type === 'checkbox') {
      return html`<p><label class="choice"><input type="checkbox" checked=${values[name]} ...${all} /> ${label}</label>${small}</p>`;
    }
    return html`<p><label for="f-${name}">${label}${rest.required ? '' : html` <small>optional</small>`}</label>
      <input type=${type} value=${values[name]} autocomplete="off" step=${type === 'datetime-local' ? 1 : undefined} ...${all} />
      ${small}</p>`;
  };
  return html`<dialog ref=${box} aria-labelledby="dialog-title" onClose=${() => dialog.set(null)}
      onCancel=${(event) => busy && event.preventDefault()}>
    <form onSubmit=${submit}>
      <h2 id="dialog-title">${title}</h2>
      ${text && html`<p>${text}</p>`}
      <div class=${fields.length > 5 ? 'fields' : ''}>${fields.map(input)}</div>
      <p class="said ${failed ? 'bad' : ''}" role="status">${said}</p>
      <div class="buttons">
        <button type="button" disabled=${busy} onClick=${() => box.current.close()}>Cancel</button>
        <button class=${danger ? 'danger' : 'main'} disabled=${busy}>${unsure ? `${action} again` : action}</button>
      </div>
    </form>
  </dialog>`;
};

/** A button that only an admin has. */
export const Act = ({ onClick, children, ...rest }) =>
  session.get()?.admin && html`<button onClick=${onClick} ...${rest}>${children}</button>`;

/** Common fields. */
export const REASON = {
  name: 'reason', label: 'Reason', required: true, maxlength: 200, help: 'It is kept, with your name.',
};
/** For `datetime-local`, which has no time zone: the browser's. */
export const toLocal = (time) => {
  if (!time) return '';
  const date = new Date(time);
  return new Date(date - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
};
export const fromLocal = (text) => (text ? new Date(text).toISOString() : null);

/* CSV */

/** A spreadsheet runs such a cell as a formula; another separator makes other cells. An apostrophe makes it text. */
const FORMULA = /(^|[;,\t\r\n"])[\s\u0000-\u001f]*(?=[=+\-@\uff1d\uff0b\uff0d\uff20])/g;
const cell = (value) => {
  const text = Array.isArray(value) ? value.map((line) => `${line.quantity} ${line.product_id}`).join('; ') : String(value ?? '');
  return `"${text.replace(FORMULA, "$&'").replaceAll('"', '""')}"`;
};

/** Saves rows as a file. The first one has the names. */
const saveCsv = (name, rows) => {
  const text = `\ufeff${rows.map((row) => row.map(cell).join(',')).join('\r\n')}\r\n`;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: 'text/csv' }));
  link.download = `${name}-${timeNow().slice(0, 19).replaceAll(':', '')}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
};

const MAX_EXPORT = 10_000;
/** Saves everything that a list has from this page on, at most `MAX_EXPORT` rows. */
export const Export = ({ name, path, parameters, keep }) => {
  const [said, setSaid] = useState('');
  const run = async () => {
    setSaid('0 rows …');
    try {
      const progress = (count) => setSaid(`${num(count)} rows …`);
      const { items: rows, next } = await pages(path, { ...parameters, limit: 100 }, { enough: MAX_EXPORT, rounds: 1_000, progress, keep });
      const names = [...new Set(rows.flatMap(Object.keys))].filter((field) => field !== 'server_time');
      saveCsv(name, [names, ...rows.map((row) => names.map((field) => row[field]))]);
      tell(`${plural(rows.length, 'row')} exported.${next ? ' There are more: narrow the search.' : ''}`);
    } catch (failure) {
      expected(failure);
      tell(`Nothing was exported. ${failure.message}${failure.request}`, true);
    }
    setSaid('');
  };
  return html`<button class="export" disabled=${!!said} onClick=${run}>${said || 'Export CSV'}</button>`;
};

/** Instead of a view that cannot be shown yet, or at all. */
export const Problem = ({ failure, children }) => html`<div class="empty tallest">${failure ? html`<p role="alert">${failure.message}</p><p>${failure.request}</p>${children}` : 'Loading …'}</div>`;
