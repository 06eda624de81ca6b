// An interactive figure is loaded when it comes near the screen: a script that contains its
// data, and whatever else it loads. A page opened as a file may load scripts and nothing else.
document.addEventListener("DOMContentLoaded", () => {
  const scripts = {}; // each is loaded once
  const load = (file) => (scripts[file] ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${document.documentElement.dataset.content_root ?? "./"}live/${file}`;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${file} was not loaded.`));
    document.head.append(script);
  }));
  const open = async (root) => {
    const name = root.dataset.figure;
    try {
      await load(`${name}.js`);
      await globalThis.fmkitFigures[name](root, load);
      root.classList.add("loaded");
    } catch (error) {
      root.classList.remove("alive"); // the figure goes, and its still image comes back
      console.error(error);
    }
  };
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      open(target);
    }
  }, { rootMargin: "300px" });
  document.querySelectorAll(".widget").forEach((root) => observer.observe(root));
});
