// Failed confirmations: payments that are no order.
//
// What must always hold: a job of many goes on after a reload where it was. Each of its requests is safe to repeat.

import { atom, call, expected, kept, pages, refresh, session, signedOut, usePoll } from './api.js';
import { html, useState } from './preact-htm.js';
import { Act, ask, at, Export, go, Head, logged, mono, num, Pager, plural, Problem, status, Table, Target, tell, Time, to, words } from './ui.js';

/** For each reason: a title, what to do, and whether a retry can help. In this order on the page. */
const REASONS = {
  not_confirmed: ['No attempt got an answer', 'Retry. Nothing was decided about these payments yet.', true],
  refund_required: ['The payment was refused', 'Its units were gone, the customer’s limit was reached, the reservation was cancelled, or the payment came too late. If units or the limit are free again, retry: it can still become an order. If not, resolve it, then refund the payment.', true],
  already_confirmed: ['A second payment for an order', 'The order was paid before, with another payment. Resolve it, then refund this payment.', false],
  order_cancelled: ['The order was given back', 'Resolve it, then refund the payment.', false],
  reservation_not_found: ['No such reservation of this customer', 'The id or the customer is wrong. Find the customer by the payment. Resolve it, then refund the payment.', true],
  hold_expired: ['The hold had expired, and no payment was named', 'Nothing was paid, as far as Holdfast knows. Resolve it. The customer can reserve again.', false],
  reservation_cancelled: ['The reservation was cancelled, and no payment was named', 'Nothing was paid, as far as Holdfast knows. Resolve it.', false],
  unreadable: ['The message could not be read', 'Read the message: something else wrote to the queue, or a version that differs. Retry once it can be read, or resolve it.', true],
};
export const reasonOf = (code) => {
  const [title, advice, retry] = REASONS[code] ?? [`Refused: ${words(code)}`, 'Look at the reservation. Then retry, or resolve it and refund the payment.', true];
  return { title, advice, retry };
};

const STATES = ['open', 'retrying', 'confirmed', 'resolved'];
const settled = (state) => state === 'confirmed' || state === 'resolved';
const records = (filter, options) => pages('admin/failed-confirmations', { ...filter, limit: 100 }, { rounds: 100, ...options });

/* a job of many, at most `AT_ONCE` at a time */

const AT_ONCE = 4;
const LOOK_MS = 3_000;
/** The index lags: one without a reservation that is in no list for this many looks is settled. */
const LOOKS = 3;
/** Nothing settles the record of an unreadable message whose retry can be read: this many looks wait for it. */
const MAX_LOOKS = 10;

/**
 * `{ kind, note, by, items: [{ id, reservation, payment, failedAt, state, said, looks, lists }] }`; a state is todo, wait,
 * again (it failed again: looked at once more in the end), done or failed.
 */
const job = atom(kept.read('job'));
let saving;
/** Shows it now, and writes it soon: what is sent again after a reload changes nothing. */
const save = () => {
  job.set(job.get());
  saving ??= setTimeout(() => {
    saving = undefined;
    kept.write('job', job.get());
  }, 300);
};
const put = (value) => {
  job.set(value);
  kept.write('job', value);
};
const verb = (kind) => (kind === 'retry' ? 'Retry' : 'Resolve');
const isOver = ({ state }) => state === 'done' || state === 'failed';
const mark = (item, state, said) => Object.assign(item, { state, said });

const itemOf = (f) => ({
  id: f.failed_confirmation_id, reservation: f.reservation_id, payment: f.payment_reference, failedAt: f.last_failed_at, state: 'todo',
});

/** What became of one that was retried, as its record says. */
const judge = (item, { state, settled_by, last_failed_at, reason }) => {
  const again = item.state === 'again';
  if (state === 'confirmed') mark(item, 'done', 'confirmed: it is an order');
  else if (state === 'resolved') mark(item, 'done', settled_by === 'duplicate' ? 'resolved: with another one of its payment' : `resolved by ${settled_by}`);
  else if (state === 'retrying') mark(item, 'wait', 'retrying');
  // Looked at twice: a late copy in the dead-letter queue opens also one whose retry then makes it an order.
  else if (again || last_failed_at !== item.failedAt) mark(item, again ? 'failed' : 'again', `failed again: ${reasonOf(reason).title.toLowerCase()}`);
};

async function send(item, { kind, note }) {
  const path = `admin/failed-confirmations/${item.id}/${kind}`;
  const wait = (said) => Object.assign(mark(item, 'wait', said), { looks: 0, lists: 0 });
  try {
    const answer = await call('POST', path, kind === 'resolve' ? { note } : undefined);
    if (kind === 'resolve') mark(item, 'done', 'resolved');
    else {
      wait('retrying');
      // It may have failed again already.
      judge(item, answer);
      item.failedAt = answer.last_failed_at;
    }
  } catch (failure) {
    expected(failure);
    if (failure.down || failure.status === 401) {
      item.said = failure.message;
      throw failure;
    }
    // A retry that was sent before may have settled it: its record says how.
    if (kind === 'retry' && failure.problem.code === 'already_settled') wait('settled');
    else mark(item, 'failed', failure.message);
  }
}

/** Looks for the record of one in the list of its reservation. If that has none, it is one of the `rest`. */
async function look(item, rest) {
  const keep = (f) => f.failed_confirmation_id === item.id;
  const [record] = item.reservation ? (await records({ reservation_id: item.reservation }, { keep })).items : [];
  if (record) judge(item, record);
  else rest.push(item);
}

async function lookInLists(items) {
  const lists = [];
  // In this order: one that fails again in between is seen in the second list.
  for (const state of ['retrying', 'open']) lists.push(await records({ state }, { enough: Infinity, rounds: 20 }));
  const found = new Map(lists.flatMap((list) => list.items).map((f) => [f.failed_confirmation_id, f]));
  for (const item of items) {
    const record = found.get(item.id);
    if (record) judge(item, record);
    // It may be further down in a list that goes on.
    else if (!lists.some(({ next }) => next) && ++item.looks >= LOOKS) mark(item, 'done', 'settled meanwhile');
    if (!isOver(item) && ++item.lists >= MAX_LOOKS) mark(item, 'done', record?.state === 'retrying' ? 'still being retried' : item.said);
  }
}

const pause = () => new Promise((resolve) => setTimeout(resolve, LOOK_MS));
let running = false;

/** Goes on with the job until each has its outcome. Rests while there is no session, or the API is down. */
async function run() {
  if (running) return;
  running = true;
  const mine = job.get();
  // It may be stopped, and another one started, at each `await`.
  const goesOn = () => job.get() === mine && session.get();
  const those = (wanted) => mine.items.filter(({ state }) => state === wanted);
  const each = (items, step) => Promise.all(Array.from({ length: AT_ONCE }, async () => {
    for (let item = items.shift(); item && goesOn(); item = items.shift()) {
      await step(item).catch((failure) => expected(failure) && pause());
      save();
    }
  }));
  while (goesOn() && !mine.items.every(isOver)) {
    await each(those('todo'), (item) => send(item, mine));
    const next = ['todo', 'wait', 'again'].find((state) => those(state).length) ?? 'todo';
    if (next !== 'todo' && goesOn()) {
      const rest = [];
      refresh();
      await pause();
      await each(those(next), (item) => look(item, rest));
      await each(rest.length ? [rest] : [], lookInLists);
    }
    save();
  }
  running = false;
  refresh();
  // The lists, and so the count of open ones, lag.
  setTimeout(refresh, LOOK_MS);
  if (job.get() !== mine) return job.get() && run();
  if (mine.items.every(isOver)) tell(summary(mine));
}
session.watch(() => {
  // Whose token ended, and who did not sign out, may come back.
  if (!job.get() || (!session.get() && signedOut.get())) return;
  if (job.get().by === session.get()?.sub) run();
  else put(null);
});

const summary = ({ items }) => {
  const groups = Object.groupBy(items, ({ state, said }) => (state === 'todo' ? 'to do' : state === 'failed' && !said.startsWith('failed') ? 'refused' : said.split(/:| by /)[0]));
  return Object.entries(groups).map(([name, { length }]) => `${num(length)} ${name}`).join(', ');
};

/** What the job does, anywhere in the console. */
export const JobLine = () => {
  const current = job.use();
  if (!current || current.items.every(isOver)) return null;
  return html`<a class="note" href="#/failed">${verb(current.kind)}: ${num(current.items.filter(isOver).length)} of ${num(current.items.length)} done</a>`;
};

const Job = () => {
  const current = job.use();
  if (!current) return null;
  const { kind, items } = current;
  const over = items.filter(isOver).length;
  const order = { failed: 0, again: 0, wait: 1, todo: 2, done: 3 };
  return html`<section class="panel job" aria-label="Progress">
    <${Head} panel title="${verb(kind)} ${plural(items.length, 'confirmation')}"
      beside=${html`<span class="n" role="status">${num(over)} of ${num(items.length)} done. ${summary(current)}</span>`}>
      <button onClick=${() => put(null)}>${over < items.length ? 'Stop' : 'Close'}</button><//>
    <progress max=${items.length} value=${over} aria-label="Done" />
    <div class="fixed"><${Table} label="Outcomes" id=${(item) => item.id} rows=${items.toSorted((a, b) => order[a.state] - order[b.state]).slice(0, 200)} columns=${[
      ['Payment', (item) => mono(item.payment), 'first'],
      ['Outcome', (item) => html`<span class=${item.state === 'failed' ? 'bad' : ''}>${item.said ?? 'to do'}</span>`],
      ['Reservation', (item) => item.reservation && html`<${Target} id=${item.reservation} />`],
    ]} /></div>
  </section>`;
};

/* the view */

/** Asks, then starts a job. `items` are failed confirmations, or a function that reads them all. */
const confirmJob = (kind, count, items, done) => {
  if (job.get()?.items.every(isOver) === false) return tell('Another job is not done yet. Wait for it, or stop it.', true);
  const retry = kind === 'retry';
  return ask({
    title: `${verb(kind)} ${count}`,
    text: retry
      ? 'Each is sent to the queue again, and becomes an order if it can. Do not retry a payment that was refunded.'
      : 'After this, these payments cannot become orders of their reservations. Resolve first, then refund. Use the failed confirmation’s id as the idempotency key of the refund.',
    action: verb(kind),
    fields: retry ? [] : [{ name: 'note', label: 'What is done about it', required: true, maxlength: 1_000, help: 'For example: refunded. It is kept, with your name.' }],
    async send({ note }, _, progress) {
      const all = typeof items === 'function' ? await items(progress) : items;
      if (!all.length) throw new RangeError('There is none any more.');
      put({ kind, note, items: all.map(itemOf), by: session.get().sub });
      run();
      done?.();
    },
  });
};

/** The buttons for that. `main` is the kind that helps; a retry of `order_cancelled` never does. */
export const Both = ({ of, reason, name, what, main, done }) => ['retry', 'resolve'].map((kind) => (kind === 'resolve' || reason !== 'order_cancelled')
  && html`<${Act} class=${kind === main ? 'main' : ''} onClick=${() => confirmJob(kind, name, of, done)}>${verb(kind)} ${what}<//>`);

export const Failed = ({ query }) => {
  const { state = 'open', reason, cursor } = query;
  const parameters = { state: state === 'all' ? '' : state };
  const keep = (f) => !reason || f.reason === reason;
  const [selected, setSelected] = useState(new Map());
  const { data, failure, stale } = usePoll((signal) => records({ ...parameters, cursor }, { enough: 50, rounds: 20, signal, keep }),
    `${state} ${reason ?? ''} ${cursor ?? ''}`, { slow: reason });
  const link = (change) => to(['failed'], { ...query, cursor: '', ...change });
  const groups = Object.groupBy(data?.items ?? [], (f) => f.reason);
  const codes = [...new Set([...Object.keys(REASONS), ...Object.keys(groups)])];
  const head = html`<${Head} title="Failed confirmations"><${Export} name="failed-confirmations" path="admin/failed-confirmations" parameters=${{ ...parameters, cursor }} keep=${keep} /><//>
    <div class="tabs"><nav aria-label="State">${[...STATES, 'all'].map((name) => html`<a href=${link({ state: name, reason: '' })} aria-current=${name === state ? 'page' : undefined}>${name}</a>`)}</nav>
      <label>Reason <select onChange=${(event) => go(['failed'], { ...query, cursor: '', reason: event.target.value })}>
        <option value="">all</option>${codes.map((code) => html`<option value=${code} selected=${code === reason}>${reasonOf(code).title}</option>`)}</select></label></div>
    <${Job} />`;
  if (!data) return html`${head}<${Problem} failure=${failure} />`;
  const live = (f) => !settled(f.state);
  const select = {
    can: live,
    has: (id) => selected.has(id),
    set: (ids, on) => {
      const next = new Map(selected);
      for (const id of ids) {
        if (on) next.set(id, data.items.find((f) => f.failed_confirmation_id === id));
        else next.delete(id);
      }
      setSelected(next);
    },
  };
  const clear = () => setSelected(new Map());
  const everything = (code) => async (progress) => {
    const all = { enough: Infinity, progress: (count) => progress(`${num(count)} found …`), keep: (f) => f.reason === code && live(f) };
    return (await records(parameters, all)).items;
  };
  const columns = (code) => [
    ['Payment', (f) => mono(f.payment_reference, 'none'), 'first'],
    ['Reservation', (f) => (f.reservation_id ? html`<${Target} id=${f.reservation_id} />` : '–')],
    ['Customer', (f) => f.customer_id ?? '–'],
    ['First failed', at('first_failed_at'), 'w-time'],
    ['Last failed', at('last_failed_at'), 'w-time'],
    state !== 'open' && ['State', status],
    state !== 'open' && state !== 'retrying' && ['Settled', (f) => f.settled_at && html`<${Time} t=${f.settled_at} /> by ${f.settled_by}${f.note && html`: ${f.note}`}`],
    groups[code].some((f) => f.request_id || f.trace_id) && ['Logs', logged],
    code === 'unreadable' && ['Message', (f) => html`<code>${f.unreadable_message}</code>`],
    ['Actions', (f) => html`<span class="buttons">${live(f) && html`<${Both} of=${[f]} reason=${code} name=${f.payment_reference ?? 'it'} />`}
      <a href=${to(['actions'], { target: f.failed_confirmation_id })} aria-label="History of ${f.failed_confirmation_id}">History</a></span>`, 'w-acts'],
  ];
  const chosen = [...selected.values()].filter(Boolean);
  const group = (code) => {
    const { title, advice, retry } = reasonOf(code);
    const rows = groups[code];
    const count = rows.filter(live).length;
    const every = data.next || cursor ? 'all of this reason' : count > 1 ? `all ${num(count)}` : 'it';
    return html`<section class="panel" key=${code}>
      <${Head} panel title=${title} beside=${html`<small class="n">${num(rows.length)}${data.next ? '+' : ''}</small><small class="mono">${code}</small>`}>
        ${count > 0 && html`<div class="buttons">
          <${Both} of=${everything(code)} reason=${code} name="${every}: ${title}" what=${every} main=${retry ? 'retry' : 'resolve'} done=${clear} /></div>`}<//>
      <p class="advice">${advice}</p>
      <${Table} label=${title} columns=${columns(code)} rows=${rows} id=${(f) => f.failed_confirmation_id} stale=${stale} select=${session.get()?.admin && count ? select : undefined} />
    </section>`;
  };
  const shown = codes.filter((code) => groups[code] && (!reason || code === reason));
  return html`${head}
    ${shown.length ? shown.map(group) : html`<section class="panel"><div class="empty">
      ${stale ? 'Loading …' : data.next ? 'None among those that were read. “Next page” reads on.' : state === 'open' && !reason && !cursor ? html`<p><b>Nothing is open.</b></p><p>What is being retried or waits in the queue is not listed here.</p>` : 'None.'}</div></section>`}
    <${Pager} path=${['failed']} query=${query} next=${data.next} />
    ${chosen.length > 0 && html`<div class="selection" role="region" aria-label="Selected"><b class="n">${num(chosen.length)} selected</b>
      <${Both} of=${chosen} name="${num(chosen.length)} selected" main="retry" done=${clear} />
      <button onClick=${clear}>Clear</button></div>`}`;
};
