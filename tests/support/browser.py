"""Open pages in a browser, use their interactive figures, and look for barriers."""

from pathlib import Path

import axe_playwright_python

AXE = (
    Path(axe_playwright_python.__file__)
    .with_name("axe.min.js")
    .read_text(encoding="utf-8")
)
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}

# All that a page does by itself is done; what it folds, or shows to whoever scrolls, is
# to be seen
READY = """async () => {
  document.querySelectorAll("details").forEach(box => { box.open = true; });
  document.querySelectorAll(".toggle-hidden").forEach(box => {
    box.classList.remove("toggle-hidden");
  });
  const up = document.querySelector("#pst-back-to-top");
  up?.style.setProperty("display", "block", "important");
  for (const figure of document.querySelectorAll(".widget")) {
    figure.scrollIntoView();
    while (!figure.matches(".loaded, :not(.alive)")) {
      await new Promise(resolve => setTimeout(resolve, 50));
    }
  }
  await document.fonts.ready;
  if (window.MathJax) await MathJax.startup.promise;
}"""

# Its preload asks for style sheets a second time, which file:// refuses
VIOLATIONS = """async rules => {
  const options = {preload: false, resultTypes: ["violations"], rules};
  const found = await axe.run(options);
  return found.violations
    .filter(rule => ["serious", "critical"].includes(rule.impact))
    .flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.target}`));
}"""


def opened(browser, address, **options):
    """A tab on a touch screen, without a network unless the options say otherwise.

    What it asks for is in ``asked``, and what goes wrong on the page in ``wrong``.
    """
    context = browser.new_context(**{"offline": True, "has_touch": True} | options)
    tab = context.new_page()
    tab.asked, tab.wrong = [], []
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.on("pageerror", lambda error: tab.wrong.append(error.message))
    tab.on(
        "console",
        lambda said: said.type == "error" and tab.wrong.append(said.text),
    )
    tab.goto(address)
    return tab


def loaded(tab, name):
    """The figure called `name`, scrolled to, once it is loaded."""
    root = tab.locator(f'[data-figure="{name}"]')
    root.scroll_into_view_if_needed()
    tab.wait_for_selector(f'[data-figure="{name}"].loaded')
    return root


def await_frame(tab):
    """Until what the page does before its next frame is done."""
    frame = "new Promise(done => requestAnimationFrame(done))"
    for _ in range(2):  # the first may be the one that the page waits for
        tab.evaluate(frame)


def call(figure, body, *given):
    """Evaluate JavaScript in which `live` has the functions of the figure."""
    start = "const live = root.live;"
    return figure.evaluate(f"(root, given) => {{ {start} {body} }}", [*given])


def barriers(tab, rules=None):
    """Return serious and critical violations; `rules` are options of axe's rules."""
    tab.evaluate(AXE)
    return tab.evaluate(VIOLATIONS, rules or {})
