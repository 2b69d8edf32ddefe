// The session, requests and polling. No other module calls the API.
//
// What must always hold: the token stays in this tab (sessionStorage), and is sent to this API only.

import { useEffect, useRef, useState } from './preact-htm.js';

/** The API's root: the page is `admin` below it, also under a stage's path. */
const ROOT = new URL('../../', import.meta.url);
const POLL_MS = 3_000;
const SLOW_MS = 15_000;
const TIMEOUT_MS = 15_000;

/** A value that components can watch. */
export const atom = (value) => {
  const watchers = new Set();
  return {
    get: () => value,
    set(next) {
      value = next;
      for (const watcher of [...watchers]) watcher();
    },
    watch(watcher) {
      watchers.add(watcher);
      return () => watchers.delete(watcher);
    },
    use() {
      const [, render] = useState(0);
      useEffect(() => this.watch(() => render((count) => count + 1)), []);
      return value;
    },
  };
};

/** What survives a reload of this tab. */
export const kept = {
  read: (name) => JSON.parse(sessionStorage.getItem(name) ?? 'null'),
  write(name, value) {
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, JSON.stringify(value));
  },
};

/* time: the server's clock, as far as its answers tell it */

let offset = 0;
export const now = () => Date.now() + offset;
export const timeNow = () => new Date(now()).toISOString();
/** Changes each second. */
export const second = atom(0);
setInterval(() => second.set(second.get() + 1), 1_000);

/* the session */

/** `{ token, sub, expires, admin }`, or null. `expires` is in milliseconds. */
export const session = atom(null);
/** Why there is no session any more, in words. */
export const signedOut = atom('');

/** Starts a session; returns why it cannot, in words. */
export function signIn(token, rolesClaim = 'cognito:groups') {
  let claims;
  try {
    const part = token.trim().split('.')[1].replace(/-/g, '+').replace(/_/g, '/');
    claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (c) => c.charCodeAt(0))));
  } catch {
    return 'This is not a token. A token has three parts, separated by dots.';
  }
  // A list, or one text of words.
  const roles = String(claims[rolesClaim]).split(/[ ,]/);
  if (claims.exp * 1_000 <= now()) return 'This token has expired.';
  if (!roles.includes('admin') && !roles.includes('auditor')) {
    return 'This token has neither the role admin nor the role auditor.';
  }
  kept.write('token', token.trim());
  signedOut.set('');
  session.set({
    token: token.trim(),
    sub: String(claims.sub ?? ''),
    expires: claims.exp * 1_000 || Infinity,
    admin: roles.includes('admin'),
  });
  return '';
}

export function signOut(why = '') {
  kept.write('token', null);
  signedOut.set(why && `${why} Sign in again to continue on this page.`);
  session.set(null);
}

second.watch(() => {
  if (session.get()?.expires <= now()) signOut('Your token has expired.');
});

/* requests */

/** A request without the result that was asked for. */
class Failure extends Error {
  constructor(status, problem = {}) {
    super(sentence(status, problem));
    this.status = status;
    this.problem = problem;
    /** For whoever looks into the logs. */
    this.request = status >= 500 && problem.request_id ? ` Request ${problem.request_id}.` : '';
  }
  /** Whether the API is at fault and not the request: the same request may work later. */
  get down() {
    return !this.status || this.status >= 500 || this.status === 429;
  }
}

/** Throws on what is no `Failure`. */
export const expected = (error) => {
  if (!(error instanceof Failure)) throw error;
  return error;
};

function sentence(status, { code, title, detail, message, lines, current }) {
  if (!status) return 'The API does not answer.';
  if (status === 429) return 'The API refuses for now: too many requests (429).';
  if (code === 'route_not_found') return 'This API is of an earlier version, and does not have this yet (404).';
  if (status === 403) return 'This token may not do that (403).';
  const more = [
    current !== undefined && `it is ${current} now`,
    code === 'insufficient_stock' && lines?.[0] && `${lines[0].available} available`,
  ].filter(Boolean);
  const what = title ? (detail && detail !== title ? `${title}: ${detail}` : title) : (message ?? 'The API failed');
  return `${what[0].toUpperCase()}${what.slice(1)}${more.length ? `, ${more}` : ''} (${status}).`;
}

/** Sends a request and returns the body of its answer. Throws a `Failure`. */
export async function call(method, path, body, { key, signal } = {}) {
  const { token } = session.get() ?? {};
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body) headers['content-type'] = 'application/json';
  if (key) headers['idempotency-key'] = key;
  const limit = AbortSignal.timeout(TIMEOUT_MS);
  const options = { method, headers, body: body && JSON.stringify(body), signal: signal ? AbortSignal.any([signal, limit]) : limit };
  let response;
  let answer = {};
  try {
    response = await fetch(new URL(path, ROOT), { ...options, cache: 'no-store', credentials: 'omit' });
    answer = await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    if (!response || response.ok) throw new Failure(0);
  }
  if (response.ok) {
    const time = answer.server_time ?? answer.items?.[0]?.server_time;
    if (time) offset = Date.parse(time) - Date.now();
    return answer;
  }
  if (response.status === 401 && session.get()?.token === token) {
    signOut('The API refused your token: it has expired or is not valid here.');
  }
  throw new Failure(response.status, answer);
}

/** Empty parameters are left out. */
export const queryOf = (parameters = {}) => {
  const given = Object.entries(parameters).filter(([, value]) => value);
  return given.length ? `?${new URLSearchParams(given)}` : '';
};
export const get = (path, signal, parameters) => call('GET', path + queryOf(parameters), undefined, { signal });

/**
 * Reads pages of a list until there are `enough` items to `keep`, or no more pages, or `rounds` requests were made: with
 * filters, a page can be empty although there are more.
 */
export async function pages(path, parameters, { enough = 1, rounds = 8, signal, progress, keep = () => true } = {}) {
  const items = [];
  let cursor = parameters.cursor;
  do {
    const page = await get(path, signal, { ...parameters, cursor });
    items.push(...page.items.filter(keep));
    cursor = page.next_cursor;
    progress?.(items.length);
  } while (cursor && items.length < enough && --rounds > 0);
  return { items, next: cursor };
}

/* polling */

/** `{ at, failure, since }`: when the figures on the page were read, and what fails since. */
export const health = atom({});
/** Whether polling rests: the page is hidden or has no focus, and was not told to go on. */
export const resting = atom(false);
/** Whether polling goes on without focus. */
export const keepOn = atom(kept.read('keepOn') ?? false);
const nudge = atom(0);

const look = () => {
  const rest = document.hidden || (!document.hasFocus() && !keepOn.get());
  if (rest !== resting.get()) resting.set(rest);
};
for (const event of ['focus', 'blur']) addEventListener(event, () => setTimeout(look));
document.addEventListener('visibilitychange', look);
keepOn.watch(() => {
  kept.write('keepOn', keepOn.get() || null);
  look();
});
look();

/** Reads everything on the page again now: something was changed. */
export const refresh = () => nudge.set(nudge.get() + 1);

/**
 * Calls `load(signal)` now, and again some seconds after each answer while the page is looked at.
 * Returns `{ data, failure, stale }`: `data` is the latest answer, `stale` says that it is of another `key`.
 */
export function usePoll(load, key, { slow, main = true } = {}) {
  const [state, setState] = useState({});
  const loader = useRef();
  loader.current = load;
  useEffect(() => {
    let timer, cancel, due;
    if (main) health.set(health.get().failure?.down ? { ...health.get(), at: undefined } : {});
    const run = async () => {
      clearTimeout(timer);
      cancel?.abort();
      cancel = new AbortController();
      due = false;
      const { signal } = cancel;
      try {
        const data = await loader.current(signal);
        if (signal.aborted) return;
        setState({ data, key });
        if (main) health.set({ at: Date.now() });
      } catch (failure) {
        if (signal.aborted) return;
        expected(failure);
        // What was read at another address is no answer here.
        setState((before) => ({ ...(before.key === key && before), failure, failed: key }));
        const { at, since = Date.now() } = health.get();
        // What is shown stays as old as it is. If nothing is shown yet, the view says why.
        if (main) health.set(failure.down || at ? { at, since, failure } : {});
      } finally {
        if (!signal.aborted) timer = setTimeout(tick, slow ? SLOW_MS : POLL_MS);
      }
    };
    const tick = () => {
      due = true;
      if (!resting.get()) run();
    };
    const stops = [nudge.watch(run), resting.watch(() => due && tick())];
    run();
    return () => {
      clearTimeout(timer);
      cancel.abort();
      for (const stop of stops) stop();
    };
  }, [key]);
  const failure = state.failed === key ? state.failure : undefined;
  return { data: state.data, failure, stale: state.data !== undefined && state.key !== key };
}
