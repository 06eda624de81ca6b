"""What axe finds on a page that is open in a browser."""

from pathlib import Path

import axe_playwright_python

AXE = (
    Path(axe_playwright_python.__file__)
    .with_name("axe.min.js")
    .read_text(encoding="utf-8")
)
# Its preload asks for style sheets a second time, which file:// refuses
VIOLATIONS = """async rules => {
  const options = {preload: false, resultTypes: ["violations"], rules};
  const found = await axe.run(options);
  return found.violations
    .filter(rule => ["serious", "critical"].includes(rule.impact))
    .flatMap(rule => rule.nodes.map(node => `${rule.id}: ${node.target}`));
}"""


def barriers(tab, rules=None):
    """Return serious and critical violations; `rules` are options of axe's rules."""
    tab.evaluate(AXE)
    return tab.evaluate(VIOLATIONS, rules or {})
