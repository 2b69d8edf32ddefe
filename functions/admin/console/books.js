// The books: an audit per product; and the actions: who did what, and what came of it.

import { atom, expected, get, kept, pages, session, timeNow, usePoll } from './api.js';
import { html } from './preact-htm.js';
import { at, go, Head, Id, mono, num, Pager, plural, Problem, Product, status, Table, Target, tell, Time, to, words } from './ui.js';

/* the books */

/** By product: the audit's answer, or `{ failed }`, or `{ running }`. Of this tab, also after a reload. */
const audits = atom(kept.read('audits') ?? {});

const audit = async (id) => {
  const put = (result) => audits.set({ ...audits.get(), [id]: result });
  const before = { ...audits.get()[id], running: false };
  // Drift stands until a check is certain.
  const end = (result) => put(stateOf(before) === 'drift' && !certain(result) ? { ...before, since: stateOf(result) } : result);
  const began = timeNow();
  put({ ...before, running: true });
  try {
    const result = await get(`admin/products/${id}/audit`);
    end({ ...result, began, audited_at: result.server_time, actor: session.get()?.sub ?? '' });
  } catch (failure) {
    end({ failed: failure.message, audited_at: began });
    expected(failure);
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

const stateOf = (r) => (r.running ? 'checking' : r.failed ? 'failed' : r.complete === false ? 'incomplete'
  : r.consistent === undefined ? 'not checked' : r.consistent && !r.in_progress ? 'consistent' : r.findings?.length === 0 ? 'changing' : 'drift');
const certain = (r) => (r.consistent ? !r.in_progress : r.findings?.length > 0);
/** This tab's audit, or the last certain one of anybody, without figures: the later one. Drift stands until a later one is certain. */
const auditOf = ({ product_id, last_audit: last = {} }) => {
  const own = audits.get()[product_id];
  if (!own || own.running) return own ?? last;
  const stands = last.consistent === false && stateOf(own) !== 'drift';
  if (stands ? certain(own) && own.began > last.audited_at : !(last.audited_at > own.audited_at)) return own;
  return { ...last, since: !certain(own) && own.audited_at > last.audited_at && stateOf(own) };
};
/** What there is to say about that, besides findings. */
const remark = (r) => (r.failed ? `The check failed. ${r.failed}`
  : r.complete === false ? html`Too many reservations for one request, so nothing is known. <code>cargo local audit</code> takes the time that it needs.`
  : r.in_progress && !r.findings.length ? 'It was changed during the check, so this is not certain. Check it again.'
  : stateOf(r) === 'drift' && `${r.since ? `A later check was not certain: ${r.since}. ` : ''}${r.findings ? '' : 'Check it to see what is off.'}`);

export const Books = ({ query }) => {
  const results = audits.use();
  const id = query.product_id;
  const { data, failure, stale } = usePoll(async (signal) => {
    if (id) {
      // Only the list has the last audit.
      const { items } = await pages('admin/products', { limit: 100 }, { rounds: 20, signal, keep: (p) => p.product_id === id });
      return { items: items.length ? items : [await get(`products/${encodeURIComponent(id)}`, signal)] };
    }
    return get('admin/products', signal, { limit: 50, cursor: query.cursor });
  }, JSON.stringify(query), { slow: true });
  if (!data) return html`<h1>Books</h1><${Problem} failure=${failure} />`;
  const rows = data.items.map((p) => ({ ...p, r: auditOf(p) }));
  const running = Object.values(results).some((result) => result.running);
  const all = async () => {
    for (const { product_id } of rows) await audit(product_id);
    const { consistent, ...others } = Object.groupBy(rows, (p) => stateOf(auditOf(p)).replace(/^ch.*ing$/, 'not certain yet'));
    const bad = Object.entries(others).map(([state, { length }]) => `${num(length)} ${state}`);
    tell(`${plural(rows.length, 'product')} checked: ${bad.join(', ') || 'all are consistent'}.`, bad.length > 0);
  };
  const figure = (title, name = title.toLowerCase()) => [title, ({ r }) => (r.complete ? num(r[name]) : '–'), 'number'];
  const lastRun = ({ r, last_audit }) => {
    // Only what is certain counts, as in the API's record.
    const { audited_at, actor, consistent } = certain(r) ? r : last_audit ?? {};
    return audited_at ? html`<${Time} t=${audited_at} /> by <${Id} id=${actor} plain />: ${consistent ? 'consistent' : 'drift'}` : '–';
  };
  const columns = [
    ['Product', (p) => html`<${Product} of=${p} />`, 'first'],
    ['Result', ({ r }) => status({ state: stateOf(r) }), 'w-status'],
    ...['Available', 'Held', 'Sold', 'Total'].map((title) => figure(title)),
    figure('Ledger', 'ledger_total'),
    figure('Reservations', 'checked_reservations'),
    ['Last run', lastRun, 'w-pay'],
    ['Run', ({ product_id, r }) => html`<button disabled=${r.running} aria-label="Check ${product_id}" onClick=${() => audit(product_id)}>Check</button>`, 'w-acts'],
  ];
  const off = rows.filter(({ r }) => remark(r) || r.findings?.length);
  return html`<${Head} title="Books"><button class="main" disabled=${running} onClick=${all}>Check all</button><//>
    <p class="lead">A check reads all reservations of a product: available + held + sold = total = ledger, and each customer’s
      count = what they have. It changes no stock, and works during a sale.</p>
    <section class="panel"><${Table} label="Books" columns=${columns} rows=${rows} id=${(p) => p.product_id} stale=${stale} empty="There is no product." />
      <${Pager} path=${['books']} query=${query} next=${data.next_cursor}>${id && html`<a href=${to(['books'])}>All products</a>`}<//></section>
    ${off.map(({ product_id, name, r }) => html`<section class="panel" key=${product_id}><h2>${name} <small class="mono">${product_id}</small></h2>
      <p>${remark(r)}</p>
      ${r.complete && r.findings.length > 0 && html`<${Table} label="Findings of ${product_id}" rows=${r.findings} id=${(f) => f.kind + f.where} columns=${[
        ['What', (f) => WHAT[f.kind] ?? words(f.kind), 'first'],
        ['Where', (f) => (f.where.startsWith('rsv_') ? html`<${Target} id=${f.where} />` : mono(f.where))],
        ['Expected', (f) => num(f.expected), 'number'],
        ['Found', (f) => num(f.found), 'number'],
      ]} />`}</section>`)}`;
};

/* actions */

export const actionColumns = (target) => [
  ['When', at('at'), 'w-time'],
  ['Who', (a) => html`<${Id} id=${a.actor} plain />`, 'w-by'],
  ['What', (a) => words(a.action), 'first w-pay'],
  target && ['On', (a) => html`<${Target} id=${a.target} />`],
  ['Details', (a) => Object.entries(a.detail ?? {}).map(([name, value]) => html`<span class="pair"><i>${words(name)}</i> ${typeof value === 'object' ? JSON.stringify(value) : String(value)}</span> `)],
  ['Outcome', (a) => html`<span class=${/^2/.test(a.outcome) ? '' : 'bad'}>${words(a.outcome)}</span>`, 'w-by'],
  ['Request', (a) => html`<${Id} id=${a.request_id ?? '–'} />`],
];

export const Actions = ({ query }) => {
  const { data, failure, stale } = usePoll((signal) => get('admin/actions', signal, { limit: 50, ...query }), JSON.stringify(query));
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
