// A classic script, because it must run before the first paint: otherwise a dark page is light at first.
(() => {
  const NAME = "tokka.theme";
  const known = ["light", "dark"];
  const apply = (theme) => {
    if (known.includes(theme)) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  let stored = "auto";
  try {
    stored = localStorage.getItem(NAME) ?? "auto";
  } catch {
    // Storage is blocked: use the system's theme.
  }
  apply(stored);
  document.addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = known.includes(stored) ? stored : "auto";
    select.addEventListener("change", () => {
      apply(select.value);
      try {
        localStorage.setItem(NAME, select.value);
      } catch {
        // Storage is blocked: the choice lasts until the page is closed.
      }
    });
  });
})();
