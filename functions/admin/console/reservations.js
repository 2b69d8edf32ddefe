// Reservations and orders: search, and one page that tells a reservation's whole life.

import { call, expected, get, pages, refresh, session, timeNow, usePoll } from './api.js';
import { Both, reasonOf } from './failed.js';
import { html, useRef } from './preact-htm.js';
import {
  Act, ask, at, Back, Countdown, Export, Facts, fromLocal, go, Head, length, logged, money, mono, Pager, plural, Problem, Product,
  REASON, status, sumOf, Table, Target, Time, to, toLocal, words,
} from './ui.js';

const price = (r) => money(r.total_price_minor, r.currency, r.currency_exponent);
const units = (r) => r.lines.map((line) => `${line.quantity} × ${line.name}`).join(', ');

export const Reservations = ({ query }) => {
  // A list that moves under the pointer is of no use: it ends when it was opened, and is read again up to then.
  const key = JSON.stringify(query);
  const any = Object.keys(query).length > 0;
  const opened = useRef({});
  if (opened.current.key !== key) opened.current = { key, at: timeNow() };
  const { data, failure, stale } = usePoll(async (signal) => {
    const { at } = opened.current;
    const list = { limit: 50, ...query, to: query.to || query.cursor ? query.to : at };
    const newer = query.to || query.cursor ? null : get('admin/reservations', signal, { ...query, from: at, limit: 1 });
    const [page, more] = await Promise.all([pages('admin/reservations', list, { signal }), newer]);
    return { ...page, newer: more?.items.length };
    // A search reads much.
  }, key, { slow: any });
  const find = (event) => {
    event.preventDefault();
    const form = Object.fromEntries(new FormData(event.target));
    const { id, from, to: until, ...rest } = Object.fromEntries(Object.entries(form).map(([name, text]) => [name, text.trim()]));
    if (id) go(['reservations', id]);
    else go(['reservations'], { ...rest, from: fromLocal(from), to: fromLocal(until) });
  };
  const show = () => {
    opened.current.at = timeNow();
    refresh();
  };
  const columns = [
    ['Made', at('created_at'), 'w-time'],
    ['Reservation', (r) => html`<${Target} id=${r.reservation_id} />`, 'first'],
    ['Status', status, 'w-status'],
    ['Customer', (r) => r.customer_id],
    ['Units', units],
    ['Price', price, 'number'],
    ['Payment', (r) => mono(r.payment_reference), 'w-pay'],
    ['Ends / ended', (r) => (r.status === 'held' ? html`<${Countdown} t=${r.expires_at} />` : html`<${Time} t=${r.cancelled_at ?? r.confirmed_at ?? (r.status === 'expired' && r.expires_at)} />`), 'w-time'],
  ];
  const field = (name, label, rest) => html`<label>${label} <input name=${name} defaultValue=${query[name] ?? ''} autocomplete="off" spellcheck=${false} ...${rest} /></label>`;
  const time = (name, label) => field(name, label, { type: 'datetime-local', defaultValue: toLocal(query[name]).slice(0, 16) });
  return html`<${Head} title="Reservations"><${Export} name="reservations" path="admin/reservations" parameters=${query} /><//>
    <form class="filters" onSubmit=${find} key=${key}>
      ${field('id', 'Reservation id', { placeholder: 'rsv_…' })}${field('payment_reference', 'Payment')}${field('customer_id', 'Customer')}${field('product_id', 'Product id')}
      <label>Status <select name="status">${['', 'held', 'confirmed', 'cancelled', 'expired'].map((s) => html`<option value=${s} selected=${s === (query.status ?? '')}>${s || 'all'}</option>`)}</select></label>
      ${time('from', 'Made from')}${time('to', 'Made before')}
      <span class="buttons"><button class="main">Search</button>${any && html`<a class="button" href=${to(['reservations'])}>Clear</a>`}</span>
    </form>
    <section class="panel">
      <${Table} label="Reservations" columns=${columns} rows=${data?.items} id=${(r) => r.reservation_id} stale=${stale} failure=${failure}
        empty=${data?.next ? 'None among those that were read. “Next page” reads on.' : html`<p><b>No reservation matches.</b></p><p>A new one can be missing for a few seconds.</p>`} />
      <${Pager} path=${['reservations']} query=${query} next=${data?.next}>
        <span aria-live="polite">${data?.newer ? html`<button onClick=${show}>Show newer reservations</button>`
          : html`<span class="muted">${data && `${query.status === 'held' ? '' : 'Newest first. '}Times are this browser’s.`}</span>`}</span><//>
    </section>`;
};

/* one reservation */

const release = (r) => ask({
  title: 'Release this hold',
  text: `${units(r)} go back on sale. A payment for it that still comes must be refunded.`,
  action: 'Release',
  danger: true,
  fields: [REASON],
  async send({ reason }) {
    await call('POST', `admin/reservations/${r.reservation_id}/release`, { reason });
    return 'The hold was released.';
  },
});

const itsUnits = ({ restocked }) => (restocked === false ? 'Its units left the stock.' : 'Its units are on sale again.');

const giveBack = (r) => ask({
  title: 'Give this order back',
  text: `${units(r)}, ${price(r)}. The order ends${r.payment_reference ? `, and its payment ${r.payment_reference} is then in Failed confirmations, to be refunded` : ''}.`,
  action: 'Give back',
  danger: true,
  fields: [
    REASON,
    { type: 'radio', name: 'restock', label: 'Its units', required: true, options: [['yes', 'go on sale again'], ['no', 'leave the stock, with an entry of the ledger']] },
  ],
  async send({ reason, restock }) {
    const order = await call('POST', `admin/orders/${r.reservation_id}/cancel`, { reason, restock: restock === 'yes' });
    // The first one counts, whoever asks again.
    const before = order.cancelled_by === session.get()?.sub ? '' : ` before, by ${order.cancelled_by}`;
    return `The order was given back${before}. ${itsUnits(order)}${order.payment_reference ? ' Its payment is in Failed confirmations.' : ''}`;
  },
});

/** Everything that is known to have happened, oldest first. */
const life = (r, failed, actions) => {
  // `200 unchanged`: it was done before.
  const ending = r.cancelled_at && actions.find((a) => /cancel|release/.test(a.action) && /^2\d+$/.test(a.outcome) && a.actor === r.cancelled_by);
  const extended = Date.parse(r.expires_at) > Date.parse(r.created_at) + 1_000 * r.hold_seconds;
  const units = plural(sumOf(r.lines, 'quantity'), 'unit');
  const payment = ({ payment_reference }) => mono(payment_reference, 'no payment');
  const events = [
    [r.created_at, 'Held', html`${units} by ${r.customer_id}, for ${length(r.hold_seconds)}. ${extended && html`Extended to <${Time} t=${r.expires_at} />. `}
      ${r.revision > 0 && `Changed ${plural(r.revision, 'time')}: units and customer are those of now.`}`],
    r.status === 'held' && [r.expires_at, 'The hold will expire', html`in <${Countdown} t=${r.expires_at} />`, 'future'],
    (r.status === 'expired' || r.confirmed_late) && [r.expires_at, 'The hold expired', 'Its units were available again', 'warn'],
    r.confirmed_at && [r.confirmed_at, r.confirmed_late ? 'Confirmed late: an order, after the hold had expired' : 'Confirmed: an order', payment(r), 'good'],
    r.cancelled_at && [r.cancelled_at, `${r.confirmed_at ? 'Given back' : 'Cancelled'} by ${r.cancelled_by}`,
      html`${r.cancel_reason && html`“${r.cancel_reason}” `}${itsUnits(r)}${ending && logged(ending)}`, 'bad'],
    r.status === 'cancelled' && !r.cancelled_at && [null, 'Cancelled by the customer', 'When is not recorded', 'warn'],
    ...failed.flatMap((f) => [
      // Only the latest reason is kept.
      f.last_failed_at !== f.first_failed_at && [f.first_failed_at, 'Payment not accepted', payment(f), 'bad'],
      [f.last_failed_at, f.reason === 'order_cancelled' ? 'Its payment is to be refunded' : `Payment not accepted: ${reasonOf(f.reason).title}`, html`${payment(f)}${logged(f)}`, 'bad'],
      f.settled_at && [f.settled_at, `Failed confirmation ${f.state} by ${f.settled_by}`, f.note ?? payment(f), 'good'],
    ]),
    ...actions.filter((a) => a !== ending).map((a) => [a.at, `${words(a.action)} by ${a.actor}`, html`${words(a.outcome)}${logged(a)}`]),
  ];
  return events.filter(Boolean).toSorted(([a], [b]) => ((a ?? '~') < (b ?? '~') ? -1 : 1));
};

/** What is missing of a list. */
const lacks = (what, { next, failure }) => (failure ? html`<p class="bad">${what} could not be read. ${failure.message}</p>` : next && html`<p>There are more ${what.toLowerCase()} than are shown.</p>`);

export const ReservationPage = ({ id }) => {
  const { data, failure } = usePoll(async (signal) => {
    const path = `admin/reservations/${encodeURIComponent(id)}`;
    // The reservation is shown also without them.
    const list = (name, filter) => pages(`admin/${name}`, { ...filter, limit: 100 }, { enough: 100, signal })
      .catch((failure) => ({ items: [], failure: expected(failure) }));
    const [r, failed, done] = await Promise.all([
      get(path, signal), list('failed-confirmations', { reservation_id: id }), list('actions', { target: id }),
    ]);
    return { r, failed, done };
  }, id);
  const back = html`<${Back} path=${['reservations']} title="Reservations" id=${id} />`;
  if (!data) return html`${back}<h1>Reservation</h1><${Problem} failure=${failure}><p>It was never made, or its record is deleted. <a href=${to(['reservations'])}>Search</a></p><//>`;
  const { r, failed, done } = data;
  return html`${back}
    <${Head} title=${r.confirmed_at ? 'Order' : 'Reservation'} beside=${status(r)}>
      ${(r.status === 'held' || r.status === 'expired') && html`<${Act} class="danger" onClick=${() => release(r)}>Release<//>`}
        ${r.status === 'confirmed' && html`<${Act} class="danger" onClick=${() => giveBack(r)}>Give back<//>`}<//>
    <div class="two">
      <section class="panel"><h2>Its life</h2>${lacks('Failed confirmations', failed)}${lacks('Actions', done)}
        <ol class="life">${life(r, failed.items, done.items).map(([time, what, details, tone]) => html`
        <li class=${tone ?? ''}><span class="n muted"><${Time} t=${time} /></span><div><b>${what}</b><p>${details}</p></div></li>`)}</ol></section>
      <section class="panel"><h2>Facts</h2><${Facts} of=${[
        ['Id', mono(r.reservation_id)],
        ['Customer', html`<a href=${to(['reservations'], { customer_id: r.customer_id })}>${r.customer_id}</a>`],
        ['Payment', r.payment_reference ? html`<a class="mono" href=${to(['reservations'], { payment_reference: r.payment_reference })}>${r.payment_reference}</a>` : 'none'],
        ['Length of the hold', length(r.hold_seconds)],
        ['Price', price(r)],
      ]} /><h2>Lines</h2><${Table} label="Lines" rows=${r.lines} id=${(line) => line.product_id} columns=${[
        ['Product', (line) => html`<${Product} of=${line} />`, 'first'],
        ['Units', (line) => line.quantity, 'number'],
        ['Each', (line) => money(line.unit_price_minor, r.currency, r.currency_exponent), 'number'],
      ]} />
      ${failed.items.length > 0 && html`<h2>Failed confirmations</h2><${Table} label="Failed confirmations" rows=${failed.items} id=${(f) => f.failed_confirmation_id} columns=${[
        ['Payment', (f) => html`<a class="mono" href=${to(['failed'], { state: f.state, reason: f.reason })}>${f.payment_reference ?? 'none'}</a>`, 'first'],
        ['State', status, 'w-status'],
        ['Actions', (f) => !f.settled_at && html`<span class="buttons"><${Both} of=${[f]} reason=${f.reason} name=${f.payment_reference ?? 'it'} /></span>`, 'w-acts'],
      ]} />`}
      </section>
    </div>`;
};
