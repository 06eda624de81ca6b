// A citation or a term of the glossary opens as a card: under the pointer, with the
// focus of the keyboard, or at a first touch (a second one follows the link). The card
// is what the link's title says; where no script runs, the title is there.
document.addEventListener("DOMContentLoaded", () => {
  if (!("popover" in HTMLElement.prototype)) return;
  const ADDRESS = /arXiv:(\d{4}\.\d{4,5})|doi:(\S+?)(?=\.?(?:\s|$))|https?:\/\/[^\s]+?(?=\.?(?:\s|$))/g;
  let opened = null; // [link, card]
  let waiting = 0; // for the pointer to stay, or to come back
  let touched = false; // by a finger, most recently

  const element = (name, text, href) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (href) made.href = href;
    return made;
  };

  const withLinks = (card, text) => {
    let end = 0;
    for (const match of text.matchAll(ADDRESS)) {
      const [whole, arxiv, doi] = match;
      const start = arxiv ? "https://arxiv.org/abs/" : doi ? "https://doi.org/" : "";
      card.append(text.slice(end, match.index));
      card.append(element("a", whole, start + (arxiv ?? doi ?? whole)));
      end = match.index + whole.length;
    }
    card.append(text.slice(end));
  };

  const cardOf = (link, text) => {
    const card = document.createElement("span");
    const term = link.classList.contains("glossary-term");
    card.className = "link-card";
    card.popover = "manual";
    card.setAttribute("role", "note");
    card.setAttribute("aria-label", term ? "Glossary" : "Reference");
    withLinks(card, text);
    const page = element("a", term ? "Glossary" : "Bibliography", link.href);
    page.className = "link-card-page";
    card.append(page);
    link.after(card); // so that Tab goes from the link into its card
    return card;
  };

  const close = () => {
    clearTimeout(waiting);
    opened?.[1].remove();
    opened = null;
  };

  const closeUnlessIn = ({ target }) => {
    if (opened && !opened.some((part) => part.contains(target))) close();
  };

  const open = (link, text) => {
    clearTimeout(waiting);
    if (opened?.[0] === link) return;
    close();
    const card = cardOf(link, text);
    card.showPopover();
    const [line] = link.getClientRects(); // of a link that breaks, its first line
    const room = document.documentElement.clientWidth - card.offsetWidth - 8;
    const below = line.bottom + 4;
    const fits = below + card.offsetHeight < window.innerHeight;
    card.style.left = `${Math.max(8, Math.min(line.left, room))}px`;
    card.style.top = `${fits ? below : Math.max(8, line.top - card.offsetHeight - 4)}px`;
    card.addEventListener("pointerenter", () => clearTimeout(waiting));
    card.addEventListener("pointerleave", leave);
    opened = [link, card];
  };

  const leave = () => {
    clearTimeout(waiting);
    waiting = setTimeout(close, 300);
  };

  const links = "a.glossary-term[title], .bibtex-citation a[title]";
  for (const link of document.querySelectorAll(links)) {
    const text = link.title;
    link.removeAttribute("title"); // or the browser shows it as well
    link.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "touch") return;
      clearTimeout(waiting);
      waiting = setTimeout(() => open(link, text), 200);
    });
    link.addEventListener("pointerleave", leave);
    link.addEventListener("focus", () => !touched && open(link, text));
    link.addEventListener("click", (event) => {
      if (!touched || opened?.[0] === link) return;
      event.preventDefault();
      open(link, text);
    });
  }
  document.addEventListener("pointerdown", (event) => {
    touched = event.pointerType === "touch";
    closeUnlessIn(event);
  }, true);
  document.addEventListener("focusin", closeUnlessIn);
  document.addEventListener("keydown", (event) => {
    touched = false;
    if (event.key === "Escape") close();
  }, true);
  window.addEventListener("scroll", close, { passive: true });
});
