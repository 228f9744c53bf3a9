"""The page of a corpus in a real browser: everything on it is drawn, and nothing is asked of anyone."""

import json
import re
import shutil
import subprocess

import pytest

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # No name resolves: a page that asked for anything would show it as broken.
    "--host-resolver-rules=MAP * ~NOTFOUND",
]

# Runs behind the page's own script. What it finds stands in the title, which the dumped document holds.
PROBE = """
<script>
addEventListener("load", () => {
  const images = [...document.images];
  const shown = () => document.querySelectorAll(".card:not([hidden])").length;
  const all = shown();
  const search = document.getElementById("words");
  search.value = "no such words anywhere";
  search.dispatchEvent(new Event("input"));
  const none = shown();
  search.value = "";
  search.dispatchEvent(new Event("input"));
  document.title = JSON.stringify({
    images: images.length,
    drawn: images.filter((i) => i.complete && i.naturalWidth > 0).length,
    cards: all,
    none,
    back: shown(),
    charts: document.querySelectorAll("svg.bars path").length,
    waves: document.querySelectorAll("svg.wave path").length,
    requests: performance.getEntriesByType("resource").map((e) => e.name).filter((n) => !n.startsWith("data:")),
    outside: [...document.querySelectorAll("[src], link[href], a[href]")]
      .map((e) => e.getAttribute("src") || e.getAttribute("href")).filter((a) => !a.startsWith("data:")),
    scripts: document.scripts.length,
    width: document.documentElement.scrollWidth,
  });
});
</script>
"""


def look(page, tmp_path, width):
    """Opens the page with the probe at its end; gives what the probe saw."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert browser, "no chromium on the path; on Debian: apt-get install chromium"
    html = page.read_text(encoding="utf-8")
    probed = tmp_path / "page.html"
    probed.write_text(html.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    done = subprocess.run([*command, "--dump-dom", probed.as_uri()], capture_output=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout.decode(), re.S)
    return json.loads(title.group(1).replace("&lt;", "<").replace("&amp;", "&"))


@pytest.mark.parametrize("width", [1280, 500])
def test_everything_on_the_page_is_drawn_and_nothing_is_asked_for(corpus, page, tmp_path, width):
    seen = look(page, tmp_path, width)
    assert seen["cards"] >= min(12, corpus.manifest["n_records"])
    assert seen["images"] == seen["drawn"] >= seen["cards"]
    assert seen["charts"] >= 3
    assert seen["waves"] == (seen["cards"] if corpus.medium == "audio" else 0)
    assert seen["requests"] == [] and seen["outside"] == []
    # The page's own script and the probe: no text of the corpus became one.
    assert seen["scripts"] == 2
    assert (seen["none"], seen["back"]) == (0, seen["cards"])
    assert seen["width"] <= width, "nothing sticks out to the side"


def test_the_page_says_what_was_rejected(corpus, page):
    html = page.read_text(encoding="utf-8")
    for reason in corpus.manifest["n_rejected"]:
        assert f"<summary>{reason}" in html
    if corpus.name == "world-image":
        assert "3c 68 74 6d 6c" in html, "the first bytes of the page that was saved as a picture"
