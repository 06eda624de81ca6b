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
