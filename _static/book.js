// Docutils gives each entry of a list of references a role that is no item of a list.
document.addEventListener("DOMContentLoaded", () => {
  for (const entry of document.querySelectorAll(".citation-list > .citation")) {
    entry.setAttribute("role", "listitem");
  }
  // The theme's arrow that unfolds a chapter's exercises has no name.
  for (const arrow of document.querySelectorAll(".has-children > details > summary")) {
    const chapter = arrow.closest(".has-children").querySelector("a");
    arrow.setAttribute("aria-label", `Exercises of ${chapter.textContent.trim()}`);
  }
});

// A moving picture can be stopped, and stands still for those who prefer that.
document.addEventListener("DOMContentLoaded", () => {
  for (const moving of document.querySelectorAll('.bd-article img[src$=".gif"]')) {
    const still = document.createElement("canvas");
    const button = document.createElement("button");
    const show = (moves) => {
      moving.hidden = !moves;
      still.hidden = moves;
      button.textContent = moves ? "Pause" : "Play";
    };
    const prepare = () => {
      still.width = moving.naturalWidth;
      still.height = moving.naturalHeight;
      still.getContext("2d").drawImage(moving, 0, 0);
      still.setAttribute("role", "img");
      still.setAttribute("aria-label", moving.alt);
      button.type = "button";
      button.className = "pause";
      button.addEventListener("click", () => show(moving.hidden));
      moving.after(still, button);
      show(!matchMedia("(prefers-reduced-motion: reduce)").matches);
    };
    if (moving.complete) prepare();
    else moving.addEventListener("load", prepare, { once: true });
  }
});

// What the search quotes of a page is prose: no code, and no formula as it is typed.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const textOf = Search.htmlToText;
  Search.htmlToText = (text, anchor) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const part of page.querySelectorAll(".cell_input, .cell_output pre, .math")) {
      part.remove();
    }
    return textOf(page.documentElement.outerHTML, anchor);
  };
});

// Formulas and figures are no stops of the Tab key, except those that the keyboard has
// to scroll.
window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  const mark = () => {
    for (const box of document.querySelectorAll("mjx-container[display], .wide-figure")) {
      const scrolls = box.scrollWidth > box.clientWidth;
      box.classList.toggle("scrolls", scrolls);
      if (scrolls) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
      if (box.matches(".wide-figure")) {
        box.role = scrolls ? "group" : null;
        box.ariaLabel = scrolls ? "Figure that scrolls sideways" : null;
      }
    }
  };
  mark();
  document.addEventListener("toggle", mark, true);
  window.addEventListener("resize", mark);
});

// Paper is white, also for those who read in the dark.
{
  const root = document.documentElement;
  let shown;
  addEventListener("beforeprint", () => {
    shown = root.dataset.theme;
    root.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    root.dataset.theme = shown;
  });
}
