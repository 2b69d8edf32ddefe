// The books: an audit per product; and the actions: who did what, and what came of it.

import { atom, Failure, get, kept, usePoll, withQuery } from './api.js';
import { html } from './preact-htm.js';
import { Chip, go, Head, Id, num, Pager, plural, Problem, Product, Table, Target, tell, Time, to, words } from './ui.js';

/* ---- the books ---- */

/** By product: the audit's answer, or `{ failed }`, or `{ running }`. Of this tab, also after a reload. */
const audits = atom(kept.read('audits') ?? {});

const audit = async (id) => {
  const put = (result) => audits.set({ ...audits.get(), [id]: result });
  const before = audits.get()[id];
  put({ ...before, running: true });
  try {
    put(await get(`admin/products/${id}/audit`));
  } catch (failure) {
    put({ failed: failure.message, server_time: before?.server_time });
    if (!(failure instanceof Failure)) throw failure;
  }
  kept.write('audits', Object.fromEntries(Object.entries(audits.get()).filter(([, { running }]) => !running)));
};

const WHAT = {
  units: 'Available, held and sold units do not add up',
  ledger: 'The ledger does not add up to the total',
  limit: 'A customer’s count for the limit is off',
  shard: 'A shard’s units are off',
  reservation: 'A reservation contradicts itself or its index',
};

const stateOf = (r) => (r.running ? 'checking' : r.failed ? 'failed' : r.consistent === undefined ? 'not checked'
  : r.consistent ? 'consistent' : r.findings.length ? 'drift' : 'changing');

export const Books = ({ query }) => {
  const results = audits.use();
  const { data, failure, stale } = usePoll(async (signal) => {
    if (query.product_id) return { items: [await get(`products/${encodeURIComponent(query.product_id)}`, signal)] };
    return get(withQuery('admin/products', { limit: 50, cursor: query.cursor }), signal);
  }, JSON.stringify(query), { every: 15_000 });
  if (!data) return html`<h1>Books</h1><${Problem} failure=${failure} />`;
  const of = (p) => results[p.product_id] ?? {};
  const running = Object.values(results).some((result) => result.running);
  const all = async () => {
    for (const { product_id } of data.items) await audit(product_id);
    const count = (state) => data.items.filter((p) => stateOf(audits.get()[p.product_id]) === state).length;
    const bad = ['drift', 'changing', 'failed'].filter(count).map((state) => `${num(count(state))} ${state}`);
    tell(`${plural(data.items.length, 'product')} checked: ${bad.join(', ') || 'all are consistent'}.`, bad.length > 0);
  };
  const figure = (title, name = title.toLowerCase()) => [title, (p) => (name in of(p) ? num(of(p)[name]) : '–'), 'number'];
  const columns = [
    ['Product', (p) => html`<${Product} of=${p} />`, 'first'],
    ['Result', (p) => html`<${Chip} state=${stateOf(of(p))} />`, 'w-status'],
    ...['Available', 'Held', 'Sold', 'Total'].map((title) => figure(title)),
    figure('Ledger', 'ledger_total'),
    figure('Reservations', 'checked_reservations'),
    ['Checked', (p) => html`<${Time} t=${of(p).server_time} />`, 'w-time'],
    ['Run', (p) => html`<button type="button" disabled=${of(p).running} aria-label="Check ${p.product_id}" onClick=${() => audit(p.product_id)}>Check</button>`, 'w-acts'],
  ];
  const off = data.items.filter((p) => of(p).findings?.length || of(p).failed || of(p).in_progress);
  return html`<${Head} title="Books"><button type="button" class="main" disabled=${running} onClick=${all}>Check all</button><//>
    <p class="lead">A check reads all reservations of a product: available + held + sold = total = ledger, and each customer’s
      count = what they have. It changes nothing, and works during a sale.</p>
    <section class="panel"><${Table} label="Books" columns=${columns} rows=${data.items} id=${(p) => p.product_id} stale=${stale} empty="There is no product." />
      <${Pager} path=${['books']} query=${query} next=${data.next_cursor}>${query.product_id && html`<a href=${to(['books'])}>All products</a>`}<//></section>
    ${off.map((p) => html`<section class="panel" key=${p.product_id}><h2>${p.name} <small class="mono">${p.product_id}</small></h2>
      ${of(p).failed && html`<p>The check failed. ${of(p).failed}</p>`}
      ${of(p).in_progress && !of(p).findings.length && html`<p>It was changed during the check: this need not be drift. Check it again.</p>`}
      <${Table} label="Findings of ${p.product_id}" rows=${of(p).findings ?? []} id=${(f) => f.kind + f.where} columns=${[
        ['What', (f) => WHAT[f.kind] ?? words(f.kind), 'first'],
        ['Where', (f) => (f.where.startsWith('rsv_') ? html`<${Target} id=${f.where} />` : html`<span class="mono">${f.where}</span>`)],
        ['Expected', (f) => num(f.expected), 'number'],
        ['Found', (f) => num(f.found), 'number'],
      ]} /></section>`)}`;
};

/* ---- actions ---- */

const shown = (value) => (typeof value === 'object' ? JSON.stringify(value) : String(value));

export const actionColumns = (target) => [
  ['When', (a) => html`<${Time} t=${a.at} />`, 'w-time'],
  ['Who', (a) => html`<${Id} id=${a.actor} plain />`, 'w-by'],
  ['What', (a) => words(a.action), 'first w-pay'],
  target && ['On', (a) => html`<${Target} id=${a.target} />`],
  ['Details', (a) => Object.entries(a.detail ?? {}).map(([name, value]) => html`<span class="pair"><i>${words(name)}</i> ${shown(value)}</span> `)],
  ['Outcome', (a) => html`<span class=${/^2/.test(a.outcome) ? '' : 'bad'}>${words(a.outcome)}</span>`, 'w-by'],
  ['Request', (a) => html`<${Id} id=${a.request_id ?? '–'} />`],
];

export const Actions = ({ query }) => {
  const { data, failure, stale } = usePoll((signal) => get(withQuery('admin/actions', { limit: 50, target: query.target, cursor: query.cursor }), signal), JSON.stringify(query));
  const find = (event) => {
    event.preventDefault();
    go(['actions'], { target: new FormData(event.target).get('target').trim() });
  };
  return html`<${Head} title="Actions" />
    <form class="filters" onSubmit=${find} key=${query.target}>
      <label class="wide">On what <input name="target" defaultValue=${query.target ?? ''} placeholder="Product, reservation or failed confirmation id" /></label>
      <button>Search</button>${query.target && html`<a class="button" href=${to(['actions'])}>Clear</a>`}
    </form>
    <section class="panel"><${Table} label="Actions" columns=${actionColumns(true)} rows=${data?.items} id=${(a) => a.action_id} stale=${stale} failure=${failure}
        empty=${query.target ? 'Nobody has done anything with it.' : 'Nobody has done anything yet.'} />
      <${Pager} path=${['actions']} query=${query} next=${data?.next_cursor} /></section>`;
};
