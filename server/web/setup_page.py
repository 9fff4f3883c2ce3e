"""The page behind the set-up link: the first administrator, and where to mirror from.

One static page. The one-time token is in the link's fragment, which no log and
no proxy sees; the page hands it to `POST /api/v1/setup` and shows the answer.
"""

from __future__ import annotations

import base64
import hashlib

from litestar import Response, get

from feed.messages import API

SETUP_PATH = "/setup"

_SCRIPT = """
const form = document.querySelector("form");
const told = document.querySelector("output");
const done = document.querySelector("#done");
form.token.value = location.hash.slice(1);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  told.textContent = "";
  const file = form.root.files[0];
  const answer = await fetch("@API@/setup", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({
      token: form.token.value.trim(),
      name: form.person.value.trim(),
      source: form.source.value.trim() || null,
      trust_root: file ? await file.text() : null,
    }),
  }).catch((error) => ({ ok: false, json: async () => ({ sentence: String(error) }) }));
  const said = await answer.json();
  if (!answer.ok) {
    told.textContent = said.sentence;
    return;
  }
  history.replaceState(null, "", "@PATH@");
  form.hidden = true;
  done.hidden = false;
  document.querySelector("#token").textContent = said.token;
  document.querySelector("#enrol").textContent = `agentctl enroll ${said.url} ${said.enrol}`;
});
"""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }
label { display: block; margin: 1rem 0 }
input { display: block; width: 100%; box-sizing: border-box; padding: .5rem; font: inherit }
button { padding: .5rem 1.5rem; font: inherit }
code { display: block; padding: .5rem; background: #f2f2f2; overflow-wrap: anywhere }
output { color: #a00 }
small { color: #555 }
@media (prefers-color-scheme: dark) {
  body { background: #111; color: #eee } code { background: #222 } small { color: #aaa }
  output { color: #f88 }
}
"""

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Set up · Holdfast Security Server</title>
<style>@STYLE@</style>
<h1>Set up the Security Server</h1>
<form>
<label>Set-up token <small>from the link that the server printed</small>
<input name="token" required autocomplete="off" spellcheck="false"></label>
<label>Administrator <small>your name, for the audit</small>
<input name="person" required maxlength="255" autocomplete="username"></label>
<label>Feed <small>to mirror; may be given later with serverctl source</small>
<input name="source" type="url" placeholder="https://updates.vendor.example/feed"></label>
<label>The vendor's root.json <small>compare its digest with one that reached you on another
way</small><input name="root" type="file" accept=".json,application/json"></label>
<button>Set up</button>
<p><output></output></p>
</form>
<section id="done" hidden>
<h2>Done</h2>
<p>Your token. It is shown this once; keep it where you keep passwords.</p>
<code id="token"></code>
<p>On each machine that this server shall serve (good for a week):</p>
<code id="enrol"></code>
</section>
<noscript>This page needs JavaScript. Without: serverctl tokens create admin, on the
server.</noscript>
<script>@SCRIPT@</script>
</html>
"""


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


_FILLED_SCRIPT = _SCRIPT.replace("@API@", API).replace("@PATH@", SETUP_PATH)
PAGE = _PAGE.replace("@STYLE@", _STYLE).replace("@SCRIPT@", _FILLED_SCRIPT)
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
        f"frame-ancestors 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_FILLED_SCRIPT)}"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@get(SETUP_PATH, include_in_schema=False, sync_to_thread=False)
def setup_page() -> Response[str]:
    """For a browser."""
    return Response(PAGE, media_type="text/html; charset=utf-8", headers=HEADERS)


HANDLERS = (setup_page,)
