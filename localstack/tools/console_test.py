"""Drives the console in a browser, against a running local stack, and prints one line per check.

console_test.py --url http://127.0.0.1:3000 --browser /usr/bin/chromium --shots FOLDER

It makes its own products and customers, named after the time, so it can run twice on one stack. Failed confirmations of
the reason `refund_required` that are open already are retried and resolved with its own. Nothing waits for a fixed time:
each step waits for what it needs to see. Exits with 1 if a check failed.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import csv
import hashlib
import io
import json
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

import axe_playwright_python
from playwright.sync_api import expect, sync_playwright

# What the console is made of, in bytes before compression: 120 KiB.
MAX_SIZE = 122_880
# A hold of 10 s ends, is released, and the lists show it; a confirmation is retried and fails again.
LONG_MS = 120_000
HOSTILE = "<img src=x onerror=alert(1)>\"><script>alert(2)</script>"
FORMULA = "=HYPERLINK(\"http://evil.example\")"
ACTIONS = re.compile(
    "New product|Adjust|Change|Pause|Put on sale|Archive|Release|Give back|Retry|Resolve", re.IGNORECASE
)
SIZES = {"desktop": (1440, 900), "phone": (390, 844)}


class Api:
    """The API, as a shop and its customers call it."""

    def __init__(self, url):
        self.url = url
        self.tokens = {}

    def request(self, method, path, body=None, token=None, key=None):
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if key:
            headers["Idempotency-Key"] = key
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def token(self, role, sub):
        if (role, sub) not in self.tokens:
            status, answer = self.request("POST", "/local/token", {"role": role, "sub": sub})
            assert status == 200, f"no token for {role} {sub}: {status} {answer}"
            self.tokens[role, sub] = answer["token"]
        return self.tokens[role, sub]

    def reserve(self, customer, product, quantity=1):
        body = {"lines": [{"product_id": product, "quantity": quantity}]}
        status, answer = self.request(
            "POST", "/reservations", body, self.token("customer", customer), f"{product}-{uuid.uuid4()}"
        )
        assert status == 201, f"{customer} could not reserve: {status} {answer}"
        return answer["reservation_id"]

    def pay(self, reservation, customer, payment):
        body = {"payment_reference": payment, "customer_id": customer}
        path = f"/reservations/{reservation}/confirm"
        return self.request("POST", path, body, self.token("service", "shop"))

    def reservation(self, reservation, customer):
        status, answer = self.request(
            "GET", f"/reservations/{reservation}", token=self.token("customer", customer)
        )
        assert status == 200, answer
        return answer


class Run:
    """The checks, and what the browser said meanwhile."""

    def __init__(self, arguments, browser):
        self.url = arguments.url.rstrip("/")
        self.api = Api(self.url)
        self.browser = browser
        axe = pathlib.Path(axe_playwright_python.__file__).with_name("axe.min.js")
        self.axe = axe.read_text(encoding="utf-8")
        self.shots = pathlib.Path(arguments.shots)
        self.shots.mkdir(parents=True, exist_ok=True)
        self.failed = []
        self.complaints = []
        self.hosts = set()
        self.id = f"t{int(time.time())}"
        self.page = None

    def fail(self, name, why):
        print(f"FAILED  {name}: {why}", flush=True)
        self.failed.append(name)

    @contextlib.contextmanager
    def check(self, name):
        begun, before = time.monotonic(), len(self.failed)
        try:
            yield
        except Exception as error:  # Every failure is a line, and the next check runs.
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.fail(name, " | ".join(lines[:6]))
            with contextlib.suppress(Exception):
                self.page.screenshot(path=self.shots / f"failed-{len(self.failed)}.png")
        else:
            if len(self.failed) == before:
                print(f"ok      {name} ({time.monotonic() - begun:.1f} s)", flush=True)

    def open(self, size="desktop", scheme="light", **options):
        """A page of its own: nothing is shared with another one."""
        width, height = SIZES[size]
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True, **options
        )
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("dialog", lambda dialog: (self.complaints.append(f"alert: {dialog.message}"), dialog.dismiss()))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("console", self.console)
        page.on("request", lambda request: self.hosts.add(urllib.parse.urlsplit(request.url).netloc))
        self.page = page
        return page

    def console(self, message):
        # A refused request is a line of the browser's console too; the checks look at those themselves.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(f"console: {message.text}")

    def sign_in(self, page, role="admin", view="sale"):
        page.goto(f"{self.url}/admin#/{view}")
        page.get_by_role("button", name=f"Sign in as local {role}").click()
        expect(page.get_by_role("navigation", name="Views")).to_be_visible()

    def show(self, page, view, heading):
        """Opens a view by its address, and waits until it shows something."""
        page.goto(f"{self.url}/admin#/{view}")
        expect(page.get_by_role("heading", level=1, name=heading)).to_be_visible()
        expect(page.get_by_text("Loading …")).to_have_count(0)

    def clean(self, page, name):
        """Nothing sticks out, and axe finds nothing; if not, what follows is checked all the same. Takes a picture."""
        page.screenshot(path=self.shots / f"{name}.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if wide > 0:
            self.fail(name, f"{wide} px wider than the window")
        page.evaluate(self.axe)
        found = page.evaluate(
            "axe.run().then(({ violations }) => violations.map((v) => `${v.id}: ${v.nodes[0].html} ${v.nodes[0].failureSummary}`))"
        )
        if found:
            self.fail(name, f"axe: {found}")


def cell(page, product, column):
    """A figure in the table of products."""
    return page.locator("tr", has_text=product).locator(f'td[data-name="{column}"]')


def dialog(page):
    return page.get_by_role("dialog")


def confirm(page, action):
    """Sends the dialog, and waits until it is done."""
    dialog(page).get_by_role("button", name=action, exact=True).click()
    expect(dialog(page)).to_have_count(0, timeout=60_000)


def news(page, text, timeout=30_000):
    expect(page.locator(".news", has_text=text).first).to_be_visible(timeout=timeout)


def check_sign_in(run):
    page = run.open()
    with run.check("a wrong token is refused in words"):
        page.goto(f"{run.url}/admin#/books")
        for token, words in [
            ("nonsense", "not a token"),
            (run.api.token("customer", "alice"), "neither the role admin nor the role auditor"),
        ]:
            page.get_by_label("Access token").fill(token)
            page.get_by_role("button", name="Use token").click()
            expect(page.get_by_role("alert").filter(has_text=words)).to_be_visible()
        head, claims, signature = run.api.token("admin", "root").split(".")
        forged = f"{head}.{claims}.{signature[::-1]}x"
        page.get_by_label("Access token").fill(forged)
        page.get_by_role("button", name="Use token").click()
        expect(page.get_by_text("The API refused your token")).to_be_visible()
        run.clean(page, "sign-in")

    with run.check("a pasted token signs in, on the page that was asked for"):
        page.get_by_label("Access token").fill(run.api.token("admin", "root"))
        page.get_by_role("button", name="Use token").click()
        expect(page.get_by_role("heading", level=1, name="Books")).to_be_visible()

    with run.check("signing out forgets the token"):
        page.evaluate("sessionStorage.setItem('job', JSON.stringify({ kind: 'retry', items: [], by: 'root' }))")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url(f"{run.url}/admin")
        expect(page.get_by_role("button", name="Use token")).to_be_visible()
        assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0

    with run.check("signing in at an issuer: code, PKCE, and a token"):
        check_issuer(run, page)

    with run.check("an expired token is told in words"):
        # The page believes a token that is about to expire; the API gets one that is valid, so only the page can say it.
        def valid(route):
            route.continue_(headers={**route.request.headers, "authorization": f"Bearer {token}"})

        token = run.api.token("admin", "root")
        # Other issuers give the roles as one text.
        claims = {"sub": "root", "cognito:groups": "staff admin", "exp": int(time.time()) + 8}
        text = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
        page.route(re.compile("/admin/(products|failed)"), valid)
        page.goto(f"{run.url}/admin#/sale")
        page.get_by_label("Access token").fill(f"{token.split('.')[0]}.{text}.x")
        page.get_by_role("button", name="Use token").click()
        expect(page.get_by_text("Your sign-in ends in less than a minute")).to_be_visible()
        expect(page.get_by_text("Your token has expired")).to_be_visible()
    page.context.close()


def check_issuer(run, page):
    """An issuer of another host, which the browser only believes to be there."""
    issuer, asked, left = "https://login.example", {}, {}

    def config(route):
        sign_in = {"authorize_url": f"{issuer}/authorize?audience=shop", "token_url": f"{issuer}/token", "client_id": "console"}
        sign_in |= {"scope": "openid", "logout_url": f"{issuer}/logout"}
        route.fulfill(json={"sign_in": sign_in, "local": False, "roles_claim": "cognito:groups"})

    def policy(route):
        # As the function says it for these settings.
        response = route.fetch()
        rules = response.headers["content-security-policy"].replace("connect-src 'self'", f"connect-src 'self' {issuer}")
        route.fulfill(response=response, headers={**response.headers, "content-security-policy": rules})

    def authorize(route):
        asked.update(urllib.parse.parse_qsl(urllib.parse.urlsplit(route.request.url).query))
        back = urllib.parse.urlencode({"code": "the-code", "state": asked["state"]})
        # Not a redirect: Playwright would not route what follows it.
        body = f'<meta http-equiv="refresh" content="0; url={asked["redirect_uri"]}?{back}">'
        route.fulfill(content_type="text/html", body=body)

    def token(route):
        sent = dict(urllib.parse.parse_qsl(route.request.post_data))
        digest = hashlib.sha256(sent["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        assert (sent["code"], sent["client_id"], challenge) == ("the-code", "console", asked["code_challenge"]), sent
        headers = {"access-control-allow-origin": run.url}
        route.fulfill(json={"access_token": run.api.token("admin", "root")}, headers=headers)

    def logout(route):
        left.update(urllib.parse.parse_qsl(urllib.parse.urlsplit(route.request.url).query))
        route.fulfill(content_type="text/html", body=f'<meta http-equiv="refresh" content="0; url={left["logout_uri"]}">')

    page.route("**/config.json", config)
    page.route(re.compile(r"/admin([?#].*)?$"), policy)
    page.route(f"{issuer}/authorize*", authorize)
    page.route(f"{issuer}/token", token)
    page.route(f"{issuer}/logout*", logout)
    page.goto(f"{run.url}/admin#/failed?state=resolved")
    page.reload()
    page.get_by_role("button", name="Sign in", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="Failed confirmations")).to_be_visible()
    expect(page).to_have_url(f"{run.url}/admin#/failed?state=resolved")
    assert (asked["response_type"], asked["audience"], asked["scope"]) == ("code", "shop", "openid"), asked
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{run.url}/admin")
    assert left == {"client_id": "console", "logout_uri": f"{run.url}/admin"}, left
    # Somebody else's code, and somebody else's words.
    page.evaluate("sessionStorage.setItem('pkce', JSON.stringify({ verifier: 'v', state: 'own', hash: '' }))")
    for query in ["code=other&state=other", "error=denied&error_description=call+us&state=other", "error=denied"]:
        page.goto(f"{run.url}/admin?{query}")
        expect(page.get_by_text("was not started in this tab")).to_be_visible()
        assert page.evaluate("sessionStorage.getItem('pkce')") is not None, query
    page.goto(f"{run.url}/admin?error=denied&state=own")
    expect(page.get_by_text("The sign-in failed: denied.")).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('pkce')") is None
    run.hosts.discard("login.example")
    page.unroute_all()


def check_page(run):
    page = run.open()
    with run.check(f"the console is small ({MAX_SIZE:,} bytes at most), strict and of one host"):
        sizes = {}

        def measure(response):
            path = urllib.parse.urlsplit(response.url).path
            if path.startswith("/admin/console/") and not path.endswith("config.json") or path == "/admin":
                sizes[path] = len(response.body())
                policy = response.headers["content-security-policy"]
                assert "default-src 'none'" in policy and "script-src 'self'" in policy, policy
                assert "unsafe" not in policy, policy

        responses = []
        page.on("response", lambda response: responses.append(response))
        page.goto(f"{run.url}/admin")
        page.get_by_role("button", name="Sign in as local admin").click()
        expect(page.get_by_role("heading", level=1, name="Sale")).to_be_visible()
        for response in list(responses):
            measure(response)
        assert len(sizes) > 5 and sum(sizes.values()) <= MAX_SIZE, sizes
        assert run.hosts == {urllib.parse.urlsplit(run.url).netloc}, run.hosts

    with run.check("the keyboard reaches everything, and a dialog gives the focus back"):
        page.reload()
        button = page.get_by_role("button", name="New product")
        expect(button).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(button).to_be_focused()
        page.keyboard.press("Enter")
        expect(dialog(page).get_by_label("Product id")).to_be_focused()
        page.keyboard.press("Escape")
        expect(dialog(page)).to_have_count(0)
        expect(button).to_be_focused()
    page.context.close()


def check_sale(run, product):
    page = run.open()
    run.sign_in(page)
    customers = [f"{run.id}-c{number}" for number in range(30)]

    with run.check("a product is made"):
        page.get_by_role("button", name="New product").click()
        for label, value in [
            ("Product id", product),
            ("Name", f"Console test {run.id}"),
            ("Price in the minor unit", "2500"),
            ("Total units", "50"),
            ("Length of a hold", "30"),
        ]:
            dialog(page).get_by_label(label).fill(value)
        expect(dialog(page).get_by_text("25.00 EUR per unit")).to_be_visible()
        run.clean(page, "desktop-light-create")
        confirm(page, "Create")
        expect(page.get_by_role("heading", level=1, name=f"Console test {run.id}")).to_be_visible()
        expect(page.get_by_text("opening stock")).to_be_visible()

    with run.check("the bars move while customers reserve and pay, and nothing jumps"):
        run.show(page, "sale", "Sale")
        expect(cell(page, product, "Available")).to_have_text("50")
        bar = page.locator("tr", has_text=product).get_by_role("img")
        page.evaluate(
            """() => {
              window.bars = new Set();
              const look = () => {
                for (const bar of document.querySelectorAll('td .bar')) window.bars.add(bar.getAttribute('aria-label'));
              };
              new MutationObserver(look).observe(document.querySelector('main'), { subtree: true, childList: true, attributes: true });
              look();
              window.shifts = 0;
              const observer = new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts += entry.value;
              });
              observer.observe({ type: 'layout-shift', buffered: false });
            }"""
        )
        for customer in customers:
            run.api.token("customer", customer)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            herd = [pool.submit(run.api.reserve, customer, product) for customer in customers]
            # Playwright's own thread: it goes on while the herd runs.
            expect(cell(page, product, "Held")).to_have_text("30")
            held = [one.result() for one in herd]
        expect(bar).to_have_attribute("aria-label", "20 available, 30 held, 0 sold of 50")
        for customer, reservation in list(zip(customers, held))[:5]:
            status, answer = run.api.pay(reservation, customer, f"pay-{run.id}-{customer}")
            assert status == 200, answer
        expect(cell(page, product, "Sold")).to_have_text("5")
        seen = page.evaluate("[...window.bars]")
        assert len(seen) >= 3, f"the bar was only seen at {seen}"
        shifts = page.evaluate("window.shifts")
        assert shifts < 0.02, f"the layout shifted by {shifts}"
        page.screenshot(path=run.shots / "sale-in-progress.png")

    with run.check("short holds count down and expire"):
        late = run.api.reserve(f"{run.id}-late", product)
        page.goto(f"{run.url}/admin#/sale/{product}")
        live = page.get_by_role("region", name="Live holds")
        expect(live.get_by_text(f"{run.id}-late")).to_be_visible()
        expect(live.get_by_text(re.compile(r"^0:[0-2]\d$")).first).to_be_visible()
        expect(page.get_by_text("No hold is live.")).to_be_visible(timeout=LONG_MS)
        run.show(page, "sale", "Sale")
        expect(cell(page, product, "Available")).to_have_text("45", timeout=LONG_MS)
        run.show(page, f"reservations/{late}", "Reservation")
        expect(page.get_by_text("The hold expired")).to_be_visible(timeout=LONG_MS)

    with run.check("the stock is adjusted by a difference and by a counted total"):
        run.show(page, f"sale/{product}", f"Console test {run.id}")
        page.get_by_role("button", name="Adjust stock").click()
        dialog(page).get_by_label("Units to add").fill("-1000")
        dialog(page).get_by_label("Reason").fill("delivery")
        dialog(page).get_by_role("button", name="Adjust", exact=True).click()
        expect(dialog(page).get_by_text("45 available (409)")).to_be_visible()
        dialog(page).get_by_label("Units to add").fill("5")
        confirm(page, "Adjust")
        news(page, "+5, 55 in total")
        ledger = page.get_by_role("region", name="Ledger")
        expect(ledger.get_by_text("delivery")).to_be_visible()
        # A count is of the total that the page shows, which may be a second old.
        expect(page.locator("[aria-label$='sold of 55']").first).to_be_visible()
        page.get_by_role("button", name="Adjust stock").click()
        dialog(page).get_by_label("Set a counted total").check()
        dialog(page).get_by_label("Counted total: available").fill("54")
        dialog(page).get_by_label("Reason").fill("counted")
        confirm(page, "Adjust")
        expect(ledger.get_by_text("counted")).to_be_visible()
        expect(page.get_by_role("region", name=f"Actions on {product}").get_by_text("adjust").first).to_be_visible()

    with run.check("an answer that is lost does not adjust twice"):
        page.get_by_role("button", name="Adjust stock").click()
        dialog(page).get_by_label("Units to add").fill("2")
        dialog(page).get_by_label("Reason").fill("sent twice")

        def lose(route):
            route.fetch()
            route.abort()

        page.route("**/stock", lose, times=1)
        dialog(page).get_by_role("button", name="Adjust", exact=True).click()
        expect(dialog(page).get_by_text("It is safe to send it again.")).to_be_visible()
        confirm(page, "Adjust again")
        news(page, "+2, 56 in total")

    with run.check("a product is changed, paused and put on sale again"):
        page.get_by_role("button", name="Change", exact=True).click()
        dialog(page).get_by_label("Name").fill(f"Console test {run.id}, changed")
        confirm(page, "Change")
        expect(page.get_by_role("heading", level=1, name="changed")).to_be_visible()
        for button, chip in [("Pause", "paused"), ("Put on sale", "on sale")]:
            page.get_by_role("button", name=button).click()
            confirm(page, button)
            expect(page.locator(".chip", has_text=chip).first).to_be_visible()

    with run.check("all holds of a product are released"):
        reservations = [run.api.reserve(f"{run.id}-r{number}", product) for number in range(3)]
        expect(page.get_by_role("region", name="Live holds").locator("tbody tr")).to_have_count(3)
        page.get_by_role("button", name="Release holds").click()
        dialog(page).get_by_label("Reason").fill("event called off")
        # The first answer says that there is more, and the second one is lost. What comes first is registered last.
        some = {"released_holds": 2, "released_units": 2, "complete": False}
        page.route("**/release-holds", lambda route: route.abort(), times=1)
        page.route("**/release-holds", lambda route: route.fulfill(json=some), times=1)
        dialog(page).get_by_role("button", name="Release all holds", exact=True).click()
        expect(dialog(page).get_by_text("It is safe to send it again.")).to_be_visible()
        confirm(page, "Release all holds again")
        news(page, "At least 5 holds with 5 units released")
        expect(page.locator(".chip", has_text="paused").first).to_be_visible()
        run.show(page, f"reservations/{reservations[0]}", "Reservation")
        expect(page.get_by_text("event called off").first).to_be_visible()
        run.show(page, f"sale/{product}", f"Console test {run.id}, changed")
        page.get_by_role("button", name="Put on sale").click()
        confirm(page, "Put on sale")
    page.context.close()
    return customers[0], held[0]


def check_reservations(run, product, customer, order):
    page = run.open()
    run.sign_in(page, view="reservations")
    payment = f"pay-{run.id}-{customer}"

    with run.check("an order is found by its payment"):
        page.get_by_label("Payment").fill(payment)
        page.get_by_role("button", name="Search").click()
        expect(page).to_have_url(re.compile(f"payment_reference={payment}"))
        table = page.get_by_role("region", name="Reservations")
        expect(table.get_by_text(payment)).to_have_count(1)
        page.reload()
        expect(table.get_by_text(payment)).to_have_count(1)
        table.locator("a").first.click()
        expect(page).to_have_url(re.compile(order))
        expect(page.get_by_text("Confirmed: an order")).to_be_visible()

    with run.check("the order is given back, once, with a reason"):
        page.get_by_role("button", name="Give back").click()
        dialog(page).get_by_label("Reason").fill("wrong size")
        dialog(page).get_by_role("button", name="Give back", exact=True).click()
        expect(dialog(page)).to_be_visible()  # It asks what becomes of the units.
        dialog(page).get_by_label("go on sale again").check()
        run.clean(page, "desktop-light-give-back")
        confirm(page, "Give back")
        news(page, "The order was given back. Its units are on sale again. Its payment is in Failed confirmations.")
        expect(page.locator(".chip", has_text="cancelled").first).to_be_visible()
        expect(page.get_by_text("“wrong size”")).to_be_visible()
        expect(page.get_by_text(re.compile("^Given back"))).to_be_visible()
        expect(page.get_by_role("region", name="Failed confirmations").get_by_text(payment)).to_be_visible(timeout=LONG_MS)
        expect(page.get_by_role("button", name="Give back")).to_have_count(0)

    with run.check("each filter is in the address, and a page can be left and found again"):
        run.show(page, f"reservations?product_id={product}", "Reservations")
        expect(page.get_by_label("Product id")).to_have_value(product)
        page.get_by_label("Status").select_option("confirmed")
        page.get_by_role("button", name="Search").click()
        expect(page).to_have_url(re.compile("status=confirmed"))
        rows = page.get_by_role("region", name="Reservations").locator("tbody tr")
        expect(rows).to_have_count(4)
        page.go_back()
        expect(page.get_by_label("Status")).to_have_value("")
        expect(rows.first).to_be_visible()
        # What is refused shows nothing of the address before.
        page.goto(f"{run.url}/admin#/reservations?product_id=no%20id")
        expect(page.get_by_text("(400)").first).to_be_visible()
        expect(rows).to_have_count(0)
        page.goto(f"{run.url}/admin#/reservations?customer_id=nobody-{run.id}")
        expect(page.get_by_text("No reservation matches.")).to_be_visible()
        page.goto(f"{run.url}/admin#/reservations/rsv_{'a' * 52}")
        expect(page.get_by_role("alert").filter(has_text="not found")).to_be_visible()
    page.context.close()


def check_hostile(run, hostile):
    page = run.open()
    run.sign_in(page)
    customer = f"{run.id} {HOSTILE}"
    with run.check("hostile names run nothing, anywhere"):
        page.get_by_role("button", name="New product").click()
        for label, value in [("Product id", hostile), ("Name", HOSTILE), ("Price in the minor unit", "1"), ("Total units", "50")]:
            dialog(page).get_by_label(label).fill(value)
        confirm(page, "Create")
        expect(page.get_by_role("heading", level=1, name=HOSTILE)).to_be_visible()
        page.get_by_role("button", name="Adjust stock").click()
        dialog(page).get_by_label("Units to add").fill("1")
        dialog(page).get_by_label("Reason").fill(HOSTILE)
        dialog(page).get_by_label("Reference").fill(FORMULA)
        confirm(page, "Adjust")
        reservation = run.api.reserve(customer, hostile)
        assert run.api.pay(reservation, customer, f"{FORMULA};=1 {run.id}")[0] == 200
        assert run.api.pay(reservation, customer, f"{HOSTILE} {run.id}")[0] == 409
        for view, heading in [
            ("sale", "Sale"), (f"sale/{hostile}", HOSTILE), ("books", "Books"),
            (f"reservations?product_id={hostile}", "Reservations"), (f"reservations/{reservation}", "Order"),
        ]:
            run.show(page, view, heading)
            expect(page.get_by_text("alert(1)").first).to_be_visible()
        run.show(page, "failed?state=open&reason=already_confirmed", "Failed confirmations")
        expect(page.get_by_text(f"{HOSTILE} {run.id}")).to_be_visible()
        for strange in ["sale/%3Cimg%20src=x%20onerror=alert(3)%3E", "reservations?customer_id=%22%3E%3Cscript%3E", "%E0%A4%A", "failed?state=__proto__"]:
            page.goto(f"{run.url}/admin#/{strange}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
        assert page.locator("main img[src], main script").count() == 0

    with run.check("an export has no formulas"):
        run.show(page, f"reservations?product_id={hostile}", "Reservations")
        expect(page.get_by_text("alert(1)").first).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("button", name="Export CSV").click()
        text = pathlib.Path(download.value.path()).read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text)))
        assert len(rows) == 1 and rows[0]["customer_id"] == customer, rows
        assert rows[0]["payment_reference"] == f"'{FORMULA};'=1 {run.id}", rows
    page.context.close()


def check_failed(run, product):
    """Four customers pay after their units were sold to another: two of them can be served after all."""
    page = run.open()
    run.sign_in(page)
    admin = run.api.token("admin", "root")
    body = {"product_id": product, "name": f"Late {run.id}", "price_minor": 500, "currency": "EUR", "total": 4, "hold_seconds": 10}
    status, answer = run.api.request("POST", "/admin/products", body, admin)
    assert status == 201, answer
    late = [f"{run.id}-late{number}" for number in range(4)]
    held = [run.api.reserve(customer, product) for customer in late]
    payments = [f"late-{run.id}-{number}" for number in range(4)]
    page.goto(f"{run.url}/admin#/reservations/{held[-1]}")
    expect(page.get_by_text("The hold expired")).to_be_visible(timeout=LONG_MS)
    other = run.api.reserve(f"{run.id}-other", product, 4)
    assert run.api.pay(other, f"{run.id}-other", f"other-{run.id}")[0] == 200
    for reservation, customer, payment in zip(held, late, payments):
        status, answer = run.api.pay(reservation, customer, payment)
        assert status == 409 and answer["code"] == "refund_required", answer
    job = page.get_by_role("region", name="Outcomes")

    with run.check("failed confirmations are grouped by reason, with what to do"):
        run.show(page, "failed?state=open&reason=refund_required", "Failed confirmations")
        expect(page.get_by_role("heading", level=2, name="The payment was refused")).to_be_visible()
        expect(page.get_by_text("If units or the limit are free again, retry")).to_be_visible()
        for payment in payments:
            expect(page.get_by_role("cell", name=payment, exact=True)).to_be_visible()
        run.clean(page, "desktop-light-refused")

    with run.check("selected ones are retried, also over a reload, and each outcome is told"):
        status, answer = run.api.request(
            "POST", f"/admin/products/{product}/stock", {"delta": 2, "reason": "found two"}, admin, f"found-{run.id}"
        )
        assert status == 200, answer
        for payment in payments:
            page.locator("tr", has_text=payment).get_by_role("checkbox").check()
        page.get_by_role("region", name="Selected").get_by_role("button", name="Retry").click()
        dialog(page).get_by_role("button", name="Retry", exact=True).click()
        expect(job).to_be_visible()
        expect(job.get_by_text("retrying").first).to_be_visible()
        page.reload()
        progress = page.get_by_role("region", name="Progress")
        expect(progress.get_by_text("4 of 4 done.")).to_be_visible(timeout=LONG_MS)
        for outcome in ["2 confirmed", "2 failed again"]:
            expect(progress.get_by_text(outcome)).to_be_visible()
        expect(job.get_by_text("failed again: the payment was refused")).to_have_count(2)
        run.clean(page, "desktop-light-retried")
        confirmed = [run.api.reservation(*pair)["status"] for pair in zip(held, late)].count("confirmed")
        assert confirmed == 2, f"{confirmed} became orders"
        page.get_by_role("button", name="Close").click()

    with run.check("all that match are resolved with a note"):
        page.get_by_role("main").get_by_role("button", name=re.compile("^Resolve (all|it)")).first.click()
        dialog(page).get_by_label("What is done about it").fill(f"refunded {run.id}")
        dialog(page).get_by_role("button", name="Resolve", exact=True).click()
        expect(page.get_by_text(re.compile(r"(\d+) of \1 done\. \1 resolved"))).to_be_visible(timeout=60_000)
        page.get_by_role("button", name="Close").click()
        run.show(page, "failed?state=resolved&reason=refund_required", "Failed confirmations")
        expect(page.get_by_text(f"refunded {run.id}").first).to_be_visible(timeout=LONG_MS)

    with run.check("who did it is in the actions"):
        run.show(page, "actions", "Actions")
        rows = page.get_by_role("region", name="Actions").locator("tbody tr")
        expect(rows.filter(has_text="resolve").first).to_be_visible(timeout=LONG_MS)
        expect(rows.filter(has_text="retry").first).to_be_visible()
    page.context.close()


def check_stopped(run):
    """The API's answers are made up here: those to the first job come late."""
    page = run.open()
    run.sign_in(page)
    sent, held = [], []
    common = {"customer_id": "alice", "reservation_id": None, "state": "open", "note": None, "settled_at": None}
    common |= {"first_failed_at": "2026-01-01T00:00:00Z", "last_failed_at": "2026-01-01T00:00:00Z"}
    items = [
        {**common, "failed_confirmation_id": f"fc_{name}", "payment_reference": name, "reason": reason}
        for name, reason in [*((f"old{number}", "refund_required") for number in range(6)), ("new", "not_confirmed")]
    ]

    def answer(route):
        kind = route.request.url.rsplit("/", 1)[1]
        state = "resolved" if kind == "resolve" else "retrying"
        route.fulfill(json={**common, "state": state})

    def act(route):
        sent.append("/".join(route.request.url.rsplit("/", 2)[1:]))
        if sent[-1].endswith("retry"):
            held.append(route)
        else:
            answer(route)

    with run.check("a job that was stopped does not go on as the next one"):
        page.route(re.compile(r"/admin/failed-confirmations\?"), lambda route: route.fulfill(json={"items": items, "next_cursor": None}))
        page.route(re.compile(r"/admin/failed-confirmations/[^/]+/"), act)
        run.show(page, "failed", "Failed confirmations")
        page.get_by_role("button", name="Retry all 6").click()
        with page.expect_request(re.compile("/retry$")):
            confirm(page, "Retry")
        page.get_by_role("region", name="Progress").get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Resolve it").click()
        dialog(page).get_by_label("What is done about it").fill("refunded")
        confirm(page, "Resolve")
        expect(page.get_by_role("region", name="Progress").get_by_text("0 of 1 done")).to_be_visible()
        assert len(sent) == len(held) == 4, sent
        for route in held:
            answer(route)
        expect(page.get_by_text("1 of 1 done. 1 resolved")).to_be_visible()
        assert sorted(sent) == ["fc_new/resolve", *(f"fc_old{number}/retry" for number in range(4))], sent
    page.context.close()


def check_ends(run):
    """The API's answers are made up here: its lists have more pages than are read."""
    page = run.open()
    run.sign_in(page)
    common = {"customer_id": "alice", "note": None, "settled_by": None, "settled_at": None, "state": "open", "request_id": None}
    common |= {"first_failed_at": "2026-01-01T00:00:00.000Z", "last_failed_at": "2026-01-01T00:00:00.000Z", "trace_id": None}
    ends = {
        "ordered": {"state": "confirmed", "settled_by": "retry"},
        "refunded": {"state": "resolved", "settled_by": "carol"},
        "refused": {"last_failed_at": "2026-01-02T00:00:00.000Z", "request_id": "the-request", "trace_id": "the-trace"},
        # A late copy opens it, and then its retry makes an order of it.
        "reopened": {"last_failed_at": "2026-01-02T00:00:00.000Z"},
        # A message that could not be read, and now can: nothing settles its record.
        "unreadable": {"state": "retrying"},
    }
    listing, sent, looked = re.compile(r"/admin/failed-confirmations\?"), [], []

    def record(name, reason="refund_required", more=None):
        of = {"failed_confirmation_id": f"fc_{name}", "reservation_id": f"rsv_{name}", "payment_reference": name}
        if name == "unreadable":
            of["reservation_id"] = None
        return {**common, **of, "reason": reason, **(more or {})}

    def asked(route):
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(route.request.url).query))

    def retry(route):
        sent.append(route.request.url)
        route.fulfill(status=202, json=record("any", more={"state": "retrying"}))

    def answer(route):
        if "reservation_id" in asked(route):
            name = asked(route)["reservation_id"].removeprefix("rsv_")
            looked.append(name)
            more = ends["ordered" if looked.count("reopened") > 1 and name == "reopened" else name]
            route.fulfill(json={"items": [record(name, more=more)], "next_cursor": None})
        elif asked(route).get("state") == "retrying":
            route.fulfill(json={"items": [record("unreadable", more=ends["unreadable"])], "next_cursor": None})
        elif sent:
            route.fulfill(json={"items": [], "next_cursor": "0"})
        else:
            route.fulfill(json={"items": [record(name) for name in ends], "next_cursor": None})

    with run.check("each retry ends as its record says, whatever the lists still have"):
        page.route(listing, answer)
        page.route(re.compile(r"/admin/failed-confirmations/[^/]+/retry"), retry)
        run.show(page, "failed", "Failed confirmations")
        page.get_by_role("button", name="Retry all 5").click()
        confirm(page, "Retry")
        progress = page.get_by_role("region", name="Progress")
        summary = "5 of 5 done. 2 confirmed, 1 resolved, 1 failed again, 1 still being retried"
        expect(progress.get_by_text(summary)).to_be_visible(timeout=LONG_MS)
        for outcome in ["confirmed: it is an order", "resolved by carol", "failed again: the payment was refused", "still being retried"]:
            expect(progress.get_by_role("cell", name=outcome).first).to_be_visible()
        # At once, and not at its next turn.
        expect(page.locator(".count")).to_have_count(0, timeout=10_000)
        page.unroute(listing)

    with run.check("an empty list says no more than it knows"):
        page.route(listing, lambda route: route.fulfill(json={"items": [], "next_cursor": None}))
        run.show(page, "failed", "Failed confirmations")
        expect(page.get_by_text("waits in the queue is not listed here")).to_be_visible()
        run.show(page, "failed?cursor=1", "Failed confirmations")
        expect(page.get_by_text("None.", exact=True)).to_be_visible()
        page.unroute(listing)

    with run.check("a reason is looked for on the pages that follow"):

        def pages(route):
            number = int(asked(route).get("cursor", "0"))
            items = [record("late", "hold_expired", ends["refused"])] if number == 3 else [record(f"other{number}")]
            route.fulfill(json={"items": items, "next_cursor": str(number + 1)})

        page.route(listing, pages)
        run.show(page, "failed?reason=hold_expired", "Failed confirmations")
        expect(page.get_by_role("cell", name="late", exact=True)).to_be_visible()
        expect(page.get_by_text("the-trace")).to_be_visible()
        page.get_by_label("Reason").select_option("unreadable")
        expect(page.get_by_text("None among those that were read.")).to_be_visible()
        expect(page.get_by_role("link", name="Next page")).to_be_visible()
    page.context.close()


def check_books(run, product):
    page = run.open()
    run.sign_in(page, view="books")
    with run.check("the books are checked"):
        row = page.locator("tr", has_text=product)
        row.get_by_role("button", name="Check").click()
        expect(row.locator(".chip", has_text="consistent")).to_be_visible(timeout=LONG_MS)
        page.reload()
        expect(row.locator(".chip", has_text="consistent")).to_be_visible()
        run.clean(page, "desktop-light-checked")
    page.context.close()

    page = run.open()
    run.sign_in(page, role="auditor", view="books")
    with run.check("the last check is there in another tab, and one that is incomplete is told from it"):
        row = page.locator("tr", has_text=product)
        last = row.locator('td[data-name="Last run"]')
        expect(last.get_by_text(": consistent")).to_be_visible()
        now = time.strftime("%Y-%m-%dT%H:%M:%S.999Z", time.gmtime())
        result = {"complete": True, "consistent": True, "in_progress": True, "findings": [], "server_time": now}
        page.route("**/audit", lambda route: route.fulfill(json={"total": 54, "available": 54, **result}))
        row.get_by_role("button", name="Check").click()
        expect(row.locator(".chip", has_text="changing")).to_be_visible()
        result |= {"complete": False, "consistent": False}
        row.get_by_role("button", name="Check").click()
        expect(row.locator(".chip", has_text="incomplete")).to_be_visible()
        expect(page.get_by_text("Too many reservations for one request")).to_be_visible()
        expect(row.locator('td[data-name="Available"]')).to_have_text("–")
        expect(last.get_by_text(": consistent")).to_be_visible()

    with run.check("a check that is not certain does not hide drift"):

        def drift(route):
            answer = route.fetch().json()
            for item in answer["items"]:
                if item["product_id"] == product:
                    item["last_audit"] = {"audited_at": "2020-01-01T00:00:00.000Z", "actor": "bob", "consistent": False}
            route.fulfill(json=answer)

        page.route("**/admin/products?*", drift)
        page.reload()
        expect(row.locator(".chip", has_text="drift")).to_be_visible()
        expect(page.get_by_text("A later check was not certain: incomplete.")).to_be_visible()
        page.unroute("**/admin/products?*")
    page.context.close()


def check_outage(run, product):
    page = run.open()
    run.sign_in(page)
    api = re.compile(re.escape(run.url) + "/(admin/(products|failed|reservations|actions)|products).*")
    with run.check("the page says that the API is down, and goes on when it is back"):
        expect(page.get_by_text("Live", exact=False).first).to_be_visible()
        page.route(api, lambda route: route.abort())
        alert = page.get_by_role("alert").filter(has_text="The API does not answer")
        expect(alert).to_be_visible()
        expect(page.get_by_text("No answer")).to_be_visible()
        expect(page.locator(".count")).to_contain_text("?")
        expect(page.get_by_role("region", name="Products")).to_be_visible()  # The last figures stay.
        run.clean(page, "desktop-light-down")
        page.unroute(api)
        news(page, "The API answers again.")
        expect(alert).to_have_count(0)

    with run.check("what is old does not look fresh"):
        page.route(api, lambda route: route.fulfill(status=403, json={"status": 403, "code": "forbidden"}))
        expect(page.get_by_text("Refused", exact=False).first).to_be_visible()
        expect(page.locator(".age", has_text=re.compile(r"^([5-9]|\d\d) s old"))).to_be_visible()
        page.unroute(api)
        expect(page.locator(".fresh.good")).to_be_visible()
        run.show(page, f"sale/{product}", f"Console test {run.id}")
        page.route("**/ledger?*", lambda route: route.abort())
        expect(page.get_by_text("The API does not answer. This was read before.")).to_be_visible()
        expect(page.get_by_text("opening stock")).to_be_visible()
        page.unroute("**/ledger?*")
        run.show(page, "sale", "Sale")

    with run.check("it rests without focus, and goes on with it"):
        page.evaluate("document.hasFocus = () => false; dispatchEvent(new Event('blur'))")
        expect(page.get_by_text("Resting")).to_be_visible()
        with page.expect_request(re.compile("/admin/products")):
            page.evaluate("delete document.hasFocus; dispatchEvent(new Event('focus'))")
        expect(page.get_by_text("Resting")).to_have_count(0)
    page.context.close()


def views(run, product, order):
    return [
        ("sale", "sale", "Sale"),
        ("product", f"sale/{product}", f"Console test {run.id}"),
        ("reservations", "reservations", "Reservations"),
        ("order", f"reservations/{order}", "Order"),
        ("failed", "failed", "Failed confirmations"),
        ("failed-all", "failed?state=all", "Failed confirmations"),
        ("books", "books", "Books"),
        ("actions", "actions", "Actions"),
    ]


def check_auditor(run, product, order):
    page = run.open()
    run.sign_in(page, role="auditor")
    with run.check("an auditor sees every view, and has no action"):
        for _, view, heading in views(run, product, order):
            run.show(page, view, heading)
            expect(page.get_by_text("Auditor: read only")).to_be_visible()
            expect(page.get_by_role("main").get_by_role("button", name=ACTIONS)).to_have_count(0)
            expect(page.get_by_role("main").get_by_role("checkbox")).to_have_count(0)
        run.show(page, f"sale/{product}", f"Console test {run.id}")
        expect(page.get_by_text("opening stock")).to_be_visible()
        page.screenshot(path=run.shots / "auditor.png")
    page.context.close()


def check_looks(run, product, order):
    for size in SIZES:
        for scheme in ("light", "dark"):
            page = run.open(size, scheme)
            run.sign_in(page)
            with run.check(f"{size}, {scheme}: every view fits and axe finds nothing"):
                for name, view, heading in views(run, product, order):
                    run.show(page, view, heading)
                    expect(page.locator("table, .empty").first).to_be_visible()
                    run.clean(page, f"{size}-{scheme}-{name}")
                page.goto(f"{run.url}/admin#/sale/{product}")
                page.get_by_role("button", name="Adjust stock").click()
                run.clean(page, f"{size}-{scheme}-dialog")
            page.context.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the API")
    parser.add_argument("--browser", required=True, help="path of a Chromium")
    parser.add_argument("--shots", required=True, help="folder for screenshots")
    arguments = parser.parse_args()
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root.
        sandbox = os.geteuid() != 0
        browser = playwright.chromium.launch(executable_path=arguments.browser, chromium_sandbox=sandbox)
        run = Run(arguments, browser)
        product, hostile, late = f"console-{run.id}", f"hostile-{run.id}", f"late-{run.id}"
        customer = order = None
        parts = [
            lambda: check_page(run),
            lambda: check_sign_in(run),
            lambda: check_sale(run, product),
            lambda: check_reservations(run, product, customer, order),
            lambda: check_hostile(run, hostile),
            lambda: check_failed(run, late),
            lambda: check_stopped(run),
            lambda: check_ends(run),
            lambda: check_books(run, product),
            lambda: check_outage(run, product),
            lambda: check_auditor(run, product, order),
            lambda: check_looks(run, product, order),
        ]
        for part in parts:
            with contextlib.ExitStack() as stack:
                try:
                    result = part()
                    if isinstance(result, tuple):
                        customer, order = result
                except Exception as error:  # Between two checks: what follows needs what was prepared.
                    with run.check("preparation"):
                        raise error
                stack.close()
        with run.check("no script error, no alert and nothing against the policy"):
            assert not run.complaints, run.complaints
        browser.close()
    print(f"{len(run.failed)} failed" if run.failed else "all passed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
