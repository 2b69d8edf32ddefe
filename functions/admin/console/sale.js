// The sale: all products with what moves, and one product with everything about it.

import { call, get, pages, usePoll } from './api.js';
import { actionColumns } from './books.js';
import { Chart, perMinute, rate, record, SOLD, soldOutIn } from './chart.js';
import { html, useState } from './preact-htm.js';
import {
  Act, ask, at, Back, Bar, Countdown, Facts, fromLocal, Head, Id, length, money, num, Pager, plural, Problem, Product,
  REASON, status, sumOf, Table, Tiles, Time, to, toLocal, words,
} from './ui.js';

/* all products */

const sum = (products, field) => num(sumOf(products, field));

export const Sale = ({ query }) => {
  const track = `*${query.cursor ?? ''}`;
  const { data, failure, stale } = usePoll(async (signal) => {
    const page = await get('admin/products', signal, { limit: 50, cursor: query.cursor });
    record(track, page.items);
    for (const product of page.items) record(product.product_id, [product]);
    return page;
  }, track);
  if (!data) return html`<h1>Sale</h1><${Problem} failure=${failure} />`;
  const archived = data.items.filter(({ status }) => status === 'archived').length;
  const here = data.next_cursor || query.cursor ? ' on this page' : '';
  const shown = query.archived ? data.items : data.items.filter(({ status }) => status !== 'archived');
  const columns = [
    ['Product', (p) => html`<${Product} of=${p} />`, 'first'],
    ['Status', status, 'w-status'],
    ['Stock', (p) => html`<${Bar} product=${p} />`, 'w-bar'],
    ...Object.entries({ Available: 'available', Held: 'reserved', Sold: 'sold', Total: 'total' }).map(([title, name]) => [title, (p) => num(p[name]), 'number']),
    ['Bought / min', (p) => perMinute(p.reserved_at ? null : rate(p.product_id, SOLD)), 'number w-rate'],
    ['Sold out in', soldOutIn, 'number w-out'],
  ];
  return html`
    <${Head} title="Sale"><${Act} class="main" onClick=${createProduct}>New product<//><//>
    <${Tiles} of=${[
      ['On sale', num(shown.filter(({ status }) => status === 'on_sale').length), `of ${plural(shown.length, 'product')}${here}`],
      ['Available', sum(shown, 'available'), `units${here}`],
      ['Held', sum(shown, 'reserved'), `units in live holds${here}`],
      ['Sold', sum(shown, 'sold'), `of ${sum(shown, 'total')} units${here}`],
    ]} />
    <${Chart} key=${track} id=${track} title=${here ? 'Products on this page' : 'All products'} />
    <section class="panel">
      <${Head} panel title="Products">${shown.filter((p) => p.reserved_at).slice(0, 1).map((p) => html`<small>as of <${Time} t=${p.reserved_at} /></small>`)}<small><i class="key sold" /> sold</small><small><i class="key held" /> held</small><small><i class="key" /> available</small><//>
      <${Table} label="Products" columns=${columns} rows=${shown} id=${(p) => p.product_id} stale=${stale}
        empty=${html`<p><b>No products here.</b></p><p>Create one with “New product”.</p>`} />
      <${Pager} path=${['sale']} query=${query} next=${data.next_cursor}>
        ${(archived > 0 || query.archived) && html`<a href=${to(['sale'], { ...query, archived: query.archived ? '' : '1' })}>
          ${query.archived ? 'Hide archived products' : `Show ${plural(archived, 'archived product')}`}</a>`}<//>
    </section>`;
};

/* changes */

/** A whole number, or what is wrong with it. */
const whole = (text, label) => {
  const value = Number(text);
  if (String(text).trim() === '' || !Number.isSafeInteger(value)) throw new RangeError(`${label}: a whole number, please.`);
  return value;
};

const exponentOf = (currency) => {
  try {
    return new Intl.NumberFormat('en', { style: 'currency', currency }).resolvedOptions().maximumFractionDigits;
  } catch {
    return 2;
  }
};
const price = (currency, exponent) => ({
  name: 'price_minor', label: 'Price in the minor unit', inputmode: 'numeric', pattern: '\\d*', required: true,
  help: (v) => (v.price_minor && /^\d+$/.test(v.price_minor)
    ? `${money(v.price_minor, currency(v), exponent(v))} per unit`
    : 'In cents, for example: 2500 is 25.00 EUR'),
});
const NUMBER = { type: 'number', min: 0, step: 1 };
const settings = (product = {}) => [
  { ...NUMBER, name: 'hold_seconds', label: 'Length of a hold, in seconds', min: 10, max: 3_600, value: product.hold_seconds, required: !!product.version,
    help: product.version ? 'Existing holds keep theirs.' : 'Default: 600' },
  { ...NUMBER, name: 'late_payment_seconds', label: 'A late payment is accepted for, in seconds', max: 2_592_000,
    value: product.late_payment_seconds, required: !!product.version, help: product.version ? '0: never' : 'Default: 86400, one day. 0: never' },
  { ...NUMBER, name: 'max_per_customer', label: 'Limit per customer, in units', min: 1, value: product.max_per_customer,
    help: () => (!product.version ? 'Default: the limit of the deployment'
      : product.counts_per_customer ? 'Empty: no limit' : 'This product was made without a limit, and cannot get one.'),
    readonly: product.counts_per_customer === false },
  { type: 'datetime-local', name: 'sale_starts_at', label: 'The sale starts', value: toLocal(product.sale_starts_at), help: 'Empty: at once' },
  { type: 'datetime-local', name: 'sale_ends_at', label: 'The sale ends', value: toLocal(product.sale_ends_at), help: 'Empty: no end' },
];
const given = (name, text) => (name.endsWith('_at') ? fromLocal(text) : name === 'name' ? text : whole(text, words(name)));

const createProduct = () => ask({
  title: 'New product',
  action: 'Create',
  fields: [
    { name: 'product_id', label: 'Product id', required: true, pattern: '[A-Za-z0-9_\\-]{1,64}', maxlength: 64,
      help: 'Letters, digits, _ and -. It cannot be changed.' },
    { name: 'name', label: 'Name', required: true, maxlength: 200 },
    { name: 'currency', label: 'Currency', required: true, value: 'EUR', pattern: '[A-Z]{3}', maxlength: 3, help: 'Three letters, as in EUR' },
    price((v) => v.currency, (v) => exponentOf(v.currency)),
    { ...NUMBER, name: 'total', label: 'Total units', required: true, max: 1_000_000_000 },
    { type: 'radio', name: 'status', label: 'Status', value: 'on_sale', options: [['on_sale', 'on sale'], ['paused', 'paused']] },
    ...settings(),
  ],
  async send(values) {
    const body = {};
    for (const [name, text] of Object.entries(values)) {
      if (text === '') continue;
      body[name] = ['product_id', 'name', 'currency', 'status'].includes(name) ? text : given(name, text);
    }
    await call('POST', 'admin/products', body).catch(unlessDone('product_exists', body.product_id, body));
    location.hash = to(['sale', body.product_id]);
    return `Product ${body.product_id} was created.`;
  },
});

/** One whose answer was lost is refused the second time. It is done if the product is as wanted. */
const unlessDone = (code, id, wanted) => async (failure) => {
  if (failure.problem?.code !== code) throw failure;
  // What is read is up to two seconds old.
  await new Promise((done) => setTimeout(done, 2_000));
  const product = await get(`products/${id}`);
  if (Object.entries(wanted).some(([name, value]) => product[name] !== value)) throw failure;
};
const patch = ({ product_id, version }, change) =>
  call('PATCH', `admin/products/${product_id}`, { version, ...change }).catch(unlessDone('version_mismatch', product_id, change));

const changeProduct = (product) => {
  const fields = [
    { name: 'name', label: 'Name', required: true, maxlength: 200, value: product.name },
    { ...price(() => product.currency, () => product.currency_exponent), value: String(product.price_minor) },
    ...settings(product),
  ];
  ask({
    title: `Change ${product.product_id}`,
    action: 'Change',
    fields,
    async send(values) {
      const change = {};
      for (const { name, value = '' } of fields) {
        const text = values[name];
        if (String(text) !== String(value ?? '')) change[name] = text === '' ? null : given(name, text);
      }
      if (!Object.keys(change).length) throw new RangeError('Nothing is different.');
      await patch(product, change);
      return `Product ${product.product_id} was changed: ${Object.keys(change).map(words).join(', ')}.`;
    },
  });
};

const STATUS = {
  paused: ['Pause', 'No new holds are made. Existing holds stay, and can be paid.'],
  on_sale: ['Put on sale', 'Customers can reserve it, from now or from the start of its sale.'],
  archived: ['Archive', 'It leaves the public list and cannot be reserved. Its holds, orders and ledger stay. To bring it back, put it on sale.'],
};
const setStatus = (product, status, [action, text] = STATUS[status]) => ask({
  title: `${action}: ${product.product_id}`,
  text,
  action,
  danger: status === 'archived',
  async send() {
    await patch(product, { status });
    return `Product ${product.product_id} is ${words(status)}.`;
  },
});

const signed = (delta) => `${delta > 0 ? '+' : '−'}${num(Math.abs(delta))}`;

const adjust = (product) => {
  const change = (v) => Number(v.by === 'total' ? v.total - product.total : v.delta);
  const says = (v) => {
    const delta = change(v);
    if (!Number.isSafeInteger(delta) || !delta) return `${num(product.total)} units in total now`;
    return `${num(product.total)} now, ${signed(delta)}: ${num(product.total + delta)} in total`;
  };
  ask({
    title: `Adjust the stock of ${product.product_id}`,
    text: `${num(product.available)} available, ${num(product.reserved)} held, ${num(product.sold)} sold. Units that are held or sold cannot be removed.`,
    action: 'Adjust',
    fields: [
      { type: 'radio', name: 'by', label: 'How', value: 'delta', options: [['delta', 'Add or remove units'], ['total', 'Set a counted total']] },
      { type: 'number', step: 1, name: 'delta', label: 'Units to add; with a minus, to remove', required: true, show: (v) => v.by === 'delta', help: says },
      { ...NUMBER, name: 'total', label: 'Counted total: available, held and sold', required: true, show: (v) => v.by === 'total', help: says },
      REASON,
      { name: 'reference', label: 'Reference', maxlength: 200, help: 'A document, such as a purchase order' },
    ],
    async send(values, key) {
      const delta = whole(change(values), 'Units');
      if (!delta) throw new RangeError('That changes nothing.');
      const body = { delta, reason: values.reason };
      if (values.reference) body.reference = values.reference;
      // A count is of what was seen: if the total has changed since, the difference would be wrong.
      if (values.by === 'total') body.expected_total = product.total;
      const entry = await call('POST', `admin/products/${product.product_id}/stock`, body, { key });
      return `${product.product_id}: ${signed(delta)}, ${num(entry.total_after)} in total.`;
    },
  });
};

// The sums are the dialog's, also when it is sent again. A round without an answer may have released more.
const releaseHolds = (product, [least, holds, units] = ['', 0, 0]) => ask({
  title: `Release all holds of ${product.product_id}`,
  text: `${plural(product.reserved, 'unit')} in holds. Their customers cannot pay any more: a payment that still comes must be refunded.`,
  action: 'Release all holds',
  danger: true,
  fields: [
    REASON,
    product.status === 'on_sale' && { type: 'checkbox', name: 'pause', label: 'Pause the product first', value: true, help: 'Otherwise new holds are made meanwhile.' },
  ].filter(Boolean),
  async send({ reason, pause }, _, progress) {
    if (pause) await patch(product, { status: 'paused' });
    for (let released = {}; !released.complete;) {
      const before = least;
      least = 'At least ';
      released = await call('POST', `admin/products/${product.product_id}/release-holds`, { reason });
      if (released.complete) least = before;
      holds += released.released_holds;
      units += released.released_units;
      progress(`${least}${plural(holds, 'hold')} released …`);
    }
    return `${least}${plural(holds, 'hold')} with ${plural(units, 'unit')} released.`;
  },
});

/* one product */

const holdColumns = (id) => [
  ['Ends in', (r) => html`<${Countdown} t=${r.expires_at} />`, 'w-left'],
  ['Customer', (r) => html`<a href=${to(['reservations', r.reservation_id])}>${r.customer_id}</a>`, 'first'],
  ['Units', (r) => num(sumOf(r.lines.filter((l) => l.product_id === id), 'quantity')), 'number w-units'],
  ['Since', at('created_at'), 'w-time'],
];
const ledgerColumns = [
  ['When', at('created_at'), 'w-time'],
  ['Units', (e) => signed(e.delta), 'number w-units'],
  ['Total', (e) => num(e.total_after), 'number w-units'],
  ['Reason', (e) => html`${e.reason}${e.reference && html` <span class="muted">${e.reference}</span>`}`, 'first'],
  ['By', (e) => html`<${Id} id=${e.actor} plain />`],
];

export const ProductPage = ({ id, query }) => {
  const path = `products/${encodeURIComponent(id)}`;
  const product = usePoll(async (signal) => {
    const product = await get(path, signal);
    record(id, [product]);
    return product;
  }, id);
  const holds = usePoll((signal) => pages('admin/reservations', { product_id: id, status: 'held', limit: 100 }, { enough: 100, rounds: 5, signal }), id, { main: false });
  const slow = { slow: true, main: false };
  const ledger = usePoll((signal) => get(`admin/${path}/ledger`, signal, { limit: 25, cursor: query.ledger }), `${id} ${query.ledger ?? ''}`, slow);
  const actions = usePoll((signal) => get('admin/actions', signal, { target: id, limit: 25 }), id, slow);
  // While it is pointed at, the list holds still: nobody opens another hold than the one they meant.
  const [still, setStill] = useState(null);
  const p = product.data;
  const back = html`<${Back} path=${['sale']} title="Sale" id=${id} />`;
  if (!p) return html`${back}<h1>${id}</h1><${Problem} failure=${product.failure} />`;
  const live = still ?? holds.data?.items.toSorted((a, b) => (a.expires_at < b.expires_at ? -1 : 1));
  const hold = () => setStill(live);
  const letGo = () => setStill(null);
  return html`${back}
    <${Head} title=${p.name} beside=${status(p)}><div class="buttons">
        <${Act} class="main" onClick=${() => adjust(p)}>Adjust stock<//>
        <${Act} onClick=${() => changeProduct(p)}>Change<//>
        ${Object.keys(STATUS).map((status) => p.status !== status && html`<${Act} onClick=${() => setStatus(p, status)}>${STATUS[status][0]}<//>`)}
        <${Act} class="danger" onClick=${() => releaseHolds(p)}>Release holds<//>
      </div><//>
    <section class="panel">
      <${Bar} product=${p} tall />
      <${Tiles} of=${[
        ['Sold', num(p.sold), '', 'sold'], ['Held', num(p.reserved), '', 'held'], ['Available', num(p.available), '', 'free'],
        ['Total', num(p.total)], ['Sold out in', soldOutIn(p)],
      ]} />
    </section>
    <div class="two">
      <${Chart} key=${id} id=${id} title="Rate" />
      <section class="panel"><h2>Settings</h2><${Facts} of=${[
        ['Price', money(p.price_minor, p.currency, p.currency_exponent)],
        ['Limit per customer', p.max_per_customer === null ? 'none' : plural(p.max_per_customer, 'unit')],
        ['Length of a hold', length(p.hold_seconds)],
        ['Late payment accepted for', p.late_payment_seconds ? length(p.late_payment_seconds) : 'never'],
        ['Sale starts', p.sale_starts_at ? html`<${Time} t=${p.sale_starts_at} />` : 'at once'],
        ['Sale ends', p.sale_ends_at ? html`<${Time} t=${p.sale_ends_at} />` : 'no end'],
        ['Shards', p.shards],
        ['Version', p.version],
      ]} /></section>
    </div>
    <div class="two even">
      <section class="panel"><${Head} panel title="Live holds" beside=${live && html`<small class="n">${num(live.length)}${holds.data.next ? '+' : ''}</small>`}>
          <a href=${to(['reservations'], { product_id: id })}>All reservations</a><//>
        <div class="fixed" onPointerEnter=${hold} onPointerLeave=${letGo} onFocusIn=${hold} onFocusOut=${letGo}>
          <${Table} label="Live holds" columns=${holdColumns(id)} rows=${live} id=${(r) => live.indexOf(r)} failure=${holds.failure}
          empty=${holds.data?.next ? 'None among the reservations that were read.' : 'No hold is live.'} /></div>
      </section>
      <section class="panel"><${Head} panel title="Ledger"><a href=${to(['books'], { product_id: id })}>Check the books</a><//>
        <div class="fixed"><${Table} label="Ledger" columns=${ledgerColumns} rows=${ledger.data?.items} id=${(e) => e.entry_id} ...${ledger}
          empty="The total has never changed." /></div>
        <${Pager} path=${['sale', id]} query=${query} next=${ledger.data?.next_cursor} of="ledger" />
      </section>
    </div>
    <section class="panel"><${Head} panel title="Actions"><a href=${to(['actions'], { target: id })}>All actions on it</a><//>
      <${Table} label="Actions on ${id}" columns=${actionColumns(false)} rows=${actions.data?.items} id=${(a) => a.action_id} failure=${actions.failure}
        empty="Nobody has done anything with it." /></section>`;
};
