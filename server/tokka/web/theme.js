// No module: it runs before the first paint, so that the page is not light before it is dark.
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
    // Blocked: as the system.
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
        // It holds until the page is left.
      }
    });
  });
})();
