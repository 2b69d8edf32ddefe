// Rates of the last minutes, from the figures that were polled; and a chart of them.

import { kept, now } from './api.js';
import { html, useState } from './preact-htm.js';
import { about, clock, num, sumOf } from './ui.js';

const KEPT_MS = 600_000;
/** Single figures jump: `reserved` lags, and holds are released in groups. So a rate is over this long at least. */
const SMOOTH_MS = 30_000;
/** A line is broken where the page rested. */
const GAP_MS = 20_000;

/** For each product: `[time, held + sold, sold]` of the last minutes. Survives a reload. */
const tracks = new Map(kept.read('tracks') ?? []);
addEventListener('pagehide', () => kept.write('tracks', [...tracks]));

/** Notes the figures of some products under an id of one's own. */
export const record = (id, products) => {
  const time = now();
  const sold = sumOf(products, 'sold');
  const track = (tracks.get(id) ?? []).filter(([at]) => at < time && at > time - KEPT_MS - SMOOTH_MS);
  track.push([time, sumOf(products, 'reserved') + sold, sold]);
  tracks.set(id, track);
};

const TAKEN = 1;
export const SOLD = 2;

/** Units per minute before a point; null if there are too few. What was given back is not negative. */
const rateAt = (track, index, field, span = SMOOTH_MS) => {
  const end = track[index];
  let start = index;
  while (start > 0 && end[0] - track[start][0] < span) start -= 1;
  const past = end[0] - track[start][0];
  return past < 5_000 ? null : Math.max(0, (60_000 * (end[field] - track[start][field])) / past);
};

export const rate = (id, field) => {
  const track = tracks.get(id) ?? [];
  return track.length ? rateAt(track, track.length - 1, field, 60_000) : null;
};
export const perMinute = (value) => (value === null ? '–' : value > 0 && value < 9.95 ? value.toFixed(1) : num(Math.round(value)));

export const soldOutIn = ({ product_id, available, status, total }) => {
  if (!available) return total ? 'sold out' : '–';
  const taken = status === 'on_sale' && rate(product_id, TAKEN);
  if (!taken) return '–';
  const seconds = (60 * available) / taken;
  return seconds > 864_000 ? 'over 10 days' : about(Math.max(1, seconds));
};

/** A step of 1, 2 or 5 times a power of ten, for at most four lines. */
const stepOf = (highest) => {
  const power = 10 ** Math.floor(Math.log10(highest / 4));
  return power * [1, 2, 5, 10].find((factor) => 4 * factor * power >= highest);
};

export const Chart = ({ id, title }) => {
  const [hover, setHover] = useState(null);
  const track = tracks.get(id) ?? [];
  const end = now();
  const lines = [TAKEN, SOLD].map((field) => track.map((_, index) => rateAt(track, index, field)));
  const most = Math.max(4, ...lines.flat());
  const step = stepOf(most);
  const top = step * Math.ceil(most / step);
  const span = Math.min(KEPT_MS, Math.max(30_000, end - (track[0]?.[0] ?? end)));
  const x = (time) => 100 * (1 - (end - time) / span);
  const y = (value) => 100 * (1 - value / top);
  const path = (values, area) => {
    const parts = [];
    values.forEach((value, index) => {
      const time = track[index][0];
      if (value === null || x(time) < 0) return;
      const [before] = track[index - 1] ?? [0];
      if (time - before > GAP_MS || !parts.length) parts.push([]);
      parts.at(-1).push(`${x(time).toFixed(2)},${y(value).toFixed(2)}`);
    });
    const ends = (part) => (area ? `M${part[0].split(',')[0]},100L${part.join('L')}L${part.at(-1).split(',')[0]},100Z` : `M${part.join('L')}`);
    return parts.map(ends).join('');
  };
  const move = (event) => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    const time = end - span * (1 - (event.clientX - left) / width);
    const nearest = track.reduce((best, [at], index) => (Math.abs(at - time) < Math.abs(track[best][0] - time) ? index : best), 0);
    setHover(track.length && Math.abs(track[nearest][0] - time) < GAP_MS ? track[nearest][0] : null);
  };
  const at = track.findIndex(([time]) => time === hover);
  const latest = [TAKEN, SOLD].map((field) => perMinute(rate(id, field)));
  const [taken, sold] = at < 0 ? latest : lines.map((values) => perMinute(values[at]));
  return html`<section class="panel chart">
    <header><h2>${title}</h2>
      <span><i class="key held" /> Held or bought, net <b class="n">${taken}</b></span>
      <span><i class="key sold" /> Bought <b class="n">${sold}</b></span>
      <span class="muted n grow">units per minute, ${at < 0 ? 'now' : clock(hover)}</span></header>
    <div class="plot" role="img" aria-label="The last ten minutes. Units per minute now: ${latest[0]} held or bought, ${latest[1]} bought."
        onPointerMove=${move} onPointerLeave=${() => setHover(null)}>
      ${Array.from({ length: top / step + 1 }, (_, index) => html`<span class="line" style=${{ top: `${y(index * step)}%` }}><small>${num(index * step)}</small></span>`)}
      <svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">
        <path class="area" d=${path(lines[1], true)} /><path class="sold" d=${path(lines[1])} /><path class="held" d=${path(lines[0])} /></svg>
      ${at >= 0 && html`<span class="cursor" style=${{ left: `${x(hover)}%` }} />`}
      ${track.length < 3 && html`<span class="wait">Rates need a few seconds of figures.</span>`}
      ${[0, 25, 50, 75, 100].map((left) => html`<small class="minute" style=${{ left: `${left}%` }}>${clock(end - span * (1 - left / 100))}</small>`)}
    </div>
  </section>`;
};
