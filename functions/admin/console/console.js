// The page itself: sign-in, the frame, and which view the address asks for.

import { Age, Dialog, news, readRoute, tell, to, Time } from './ui.js';
import { atom, call, get, health, keepOn, kept, now, resting, second, session, signedOut, signIn, signOut, usePoll } from './api.js';
import { Actions, Books } from './books.js';
import { Failed, JobLine } from './failed.js';
import { html, render, useEffect, useErrorBoundary, useRef, useState } from './preact-htm.js';
import { ReservationPage, Reservations } from './reservations.js';
import { ProductPage, Sale } from './sale.js';

const HERE = new URL('../../admin', import.meta.url);

/* sign-in */

const config = atom(null);

async function configure() {
  try {
    const response = await fetch(new URL('config.json', import.meta.url), { cache: 'no-store' });
    if (!response.ok) throw new TypeError(response.status);
    config.set(await response.json());
  } catch {
    config.set({ failed: true });
  }
}

const base64url = (bytes) => btoa(String.fromCharCode(...bytes)).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '');
const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)));

const leaveTo = (page, asked) => {
  const url = new URL(page);
  // What the issuer needs beside, such as an audience, is in its URL already.
  for (const [name, value] of Object.entries(asked)) url.searchParams.has(name) || url.searchParams.set(name, value);
  location.assign(url);
};

/** Authorization code with PKCE: to the issuer's page, which comes back with a code. */
async function leaveToSignIn({ authorize_url, client_id, scope }) {
  const [verifier, state] = [random(), random()];
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(verifier));
  kept.write('pkce', { verifier, state, hash: location.hash });
  leaveTo(authorize_url, { response_type: 'code', client_id, scope, state, redirect_uri: HERE.href, code_challenge: base64url(new Uint8Array(digest)), code_challenge_method: 'S256' });
}

/** Ends the session, also the issuer's. The page is loaded again, so nothing of it is left. */
const leave = () => {
  signOut();
  addEventListener('pagehide', () => sessionStorage.clear());
  addEventListener('pageshow', () => location.reload());
  const { logout_url, client_id } = config.get().sign_in ?? {};
  leaveTo(logout_url ?? HERE, logout_url ? { client_id, logout_uri: HERE.href } : {});
};

/** Back from the issuer's page: the code for a token. Returns what is wrong, in words. */
async function comeBack({ token_url, client_id }) {
  const { code, state, error, error_description } = Object.fromEntries(new URLSearchParams(location.search));
  const before = kept.read('pkce');
  history.replaceState(null, '', HERE.pathname + (before?.hash ?? ''));
  // Somebody else's code would sign this person in as them.
  if (!before || before.state !== state) return 'That sign-in was not started in this tab. Sign in again.';
  kept.write('pkce', null);
  if (error) return `The sign-in failed: ${error_description ?? error}.`;
  const body = new URLSearchParams({ grant_type: 'authorization_code', client_id, code, redirect_uri: HERE.href, code_verifier: before.verifier });
  try {
    const response = await fetch(token_url, { method: 'POST', body, credentials: 'omit' });
    const { access_token } = await response.json();
    return access_token ? signIn(access_token, config.get().roles_claim) : 'The sign-in failed: the issuer gave no token.';
  } catch {
    return 'The sign-in failed: the issuer does not answer.';
  }
}

const SignIn = () => {
  const { sign_in, local, roles_claim, failed } = config.use();
  const why = signedOut.use();
  const [said, setSaid] = useState('');
  useEffect(() => {
    if (sign_in && /[?&](code|error)=/.test(location.search)) comeBack(sign_in).then(setSaid);
  }, []);
  const as = (role) => async () => {
    try {
      setSaid(signIn((await call('POST', 'local/token', { role })).token, roles_claim));
    } catch {
      setSaid('The API does not answer.');
    }
  };
  const paste = (event) => {
    event.preventDefault();
    setSaid(signIn(new FormData(event.target).get('token'), roles_claim));
  };
  return html`<main class="sign-in"><h1>Holdfast <span>console</span></h1>
    ${why && html`<p class="why" role="status">${why}</p>`}
    ${failed && html`<p class="why" role="alert">The API does not answer. <button onClick=${configure}>Try again</button></p>`}
    ${sign_in && html`<button class="main" onClick=${() => leaveToSignIn(sign_in)}>Sign in</button>`}
    ${local && html`<button class="main" onClick=${as('admin')}>Sign in as local admin</button>
      <button onClick=${as('auditor')}>Sign in as local auditor</button>`}
    <form onSubmit=${paste}><label for="token">Access token</label>
      <input id="token" name="token" type="password" autocomplete="off" required aria-describedby="token-help" />
      <small id="token-help">With the role admin, or auditor to read only. It stays in this tab.</small>
      <p class="said bad" role="alert">${said}</p>
      <button type="submit">Use token</button></form></main>`;
};

/* the frame */

/** By name in the address: the title, the view, and the page of one. */
const VIEWS = {
  sale: ['Sale', Sale, ProductPage], reservations: ['Reservations', Reservations, ReservationPage],
  failed: ['Failed confirmations', Failed], books: ['Books', Books], actions: ['Actions', Actions],
};

const Freshness = () => {
  const { at, failure } = health.use();
  const rests = resting.use();
  const keep = keepOn.use();
  const [tone, text] = failure ? ['bad', failure.down ? 'No answer' : 'Refused'] : rests ? ['idle', 'Resting: not in focus'] : ['good', 'Live'];
  return html`<div class="fresh ${tone}"><span class="dot" />${text}<span class="n age">${at ? html`<${Age} at=${at} />${' '}old` : '–'}</span>
    <label title="Go on updating while another window has the focus"><input type="checkbox" checked=${keep} onChange=${(e) => keepOn.set(e.target.checked)} /> Stay live</label></div>`;
};

/** What goes on, over the page's lower edge: nothing on the page moves for it. */
const Dock = ({ away }) => {
  const { failure, since } = health.use();
  const items = news.use();
  second.use();
  const left = (session.get().expires - now()) / 60_000;
  return html`<aside class="dock" aria-label="News">
    <div role="alert">${failure && html`<p class="note bad"><b>${failure.message}</b> Since <${Time} t=${new Date(since).toISOString()} />. Trying again every few seconds.</p>`}</div>
    ${left < 5 && html`<p class="note bad">Your sign-in ends in ${left < 1 ? 'less than a minute' : `${Math.floor(left)} min`}. Then sign in again: you come back to this page.</p>`}
    ${!away && html`<${JobLine} />`}
    <div role="status" aria-live="polite">${items.map(({ id, text, bad }) => html`<p class="note news ${bad ? 'bad' : ''}" key=${id}>${text}</p>`)}</div>
  </aside>`;
};

const viewOf = ({ path: [name, id], query }) => {
  const [, View, One] = Object.hasOwn(VIEWS, name) ? VIEWS[name] : [];
  if (!View) return html`<h1>No such page</h1><p><a href=${to(['sale'])}>Go to the sale</a></p>`;
  return id && One ? html`<${One} key=${id} id=${id} query=${query} />` : html`<${View} query=${query} />`;
};

const Frame = () => {
  const [route, setRoute] = useState(readRoute);
  const main = useRef();
  const [error] = useErrorBoundary();
  const open = usePoll((signal) => get('admin/failed-confirmations?state=open&limit=100', signal), '', { slow: true, main: false });
  useEffect(() => {
    const follow = () => setRoute(readRoute());
    addEventListener('hashchange', follow);
    return () => removeEventListener('hashchange', follow);
  }, []);
  const [view, id] = route.path;
  useEffect(() => {
    document.title = `${id ?? VIEWS[view]?.[0] ?? 'Not found'} · Holdfast`;
    scrollTo(0, 0);
    if (document.activeElement !== document.body) main.current?.focus({ preventScroll: true });
  }, [view, id]);
  // The API came back: said once, to those who do not look.
  useEffect(() => {
    let down = false;
    return health.watch(() => {
      const { failure, at } = health.get();
      if (down && !failure && at) tell('The API answers again.');
      if (failure || at) down = failure?.down;
    });
  }, []);
  const { sub, admin } = session.get();
  const count = open.data?.items.length;
  return html`<a class="skip" href="#main" onClick=${(event) => { event.preventDefault(); main.current.focus(); }}>Skip to the content</a>
    <header class="top"><a class="brand" href=${to(['sale'])}>Holdfast</a>
      <nav aria-label="Views">${Object.entries(VIEWS).map(([name, [title]]) => html`<a href=${to([name])} aria-current=${name === view ? 'page' : undefined}>
        <span>${title.split(' ')[0]}<span class="long">${title.replace(/\w+/, '')}</span></span>${
        name === 'failed' && (count || open.failure) ? html` <span class="count n">${count || ''}${open.failure ? '?' : open.data.next_cursor ? '+' : ''}<span class="sr"> open</span></span>` : ''}</a>`)}</nav>
      <${Freshness} />
      <div class="who">${!admin && html`<span class="chip warn">Auditor: read only</span>`}<span class="muted sub" title=${sub}>${sub}</span>
        <button onClick=${leave}>Sign out</button></div></header>
    <main id="main" ref=${main} tabindex="-1">${error ? html`<h1>This page failed</h1><p role="alert">${String(error)}</p>
      <p><a href=${to(['sale'])} onClick=${() => location.reload()}>Reload</a></p>` : viewOf(route)}</main>
    <${Dock} away=${view === 'failed'} /><${Dialog} />`;
};

const App = () => {
  const current = session.use();
  return config.use() && (current ? html`<${Frame} />` : html`<${SignIn} />`);
};

await configure();
const token = kept.read('token');
if (token) {
  const wrong = signIn(token, config.get().roles_claim);
  if (wrong) signOut(wrong);
}
render(html`<${App} />`, document.getElementById('app'));
