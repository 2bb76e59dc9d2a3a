"use strict";
// Tables sort by a click on a column's head; values stand in data-value. Total rows stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const label = head.textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(label);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = [...body.rows].filter((row) => !row.classList.contains("total"));
      const total = [...body.rows].filter((row) => row.classList.contains("total"));
      const value = (row) => row.cells[column].dataset.value;
      const number = (text) => (text === undefined || text === "" ? NaN : Number(text));
      rows.sort((first, second) => {
        const [a, b] = [value(first), value(second)];
        const [x, y] = [number(a), number(b)];
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1; // without a figure: last
        const order = Number.isNaN(x) ? String(a).localeCompare(String(b)) : x - y;
        return descending ? -order : order;
      });
      body.append(...rows, ...total);
    });
  });
}
// Light or dark: as the system says, until the button is pressed.
const root = document.documentElement;
const theme = document.querySelector("button.theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
// On a narrow screen the list of sections is folded away.
if (matchMedia("(max-width: 64rem)").matches) document.querySelector("nav details").open = false;
// The section being read is marked in the list of sections.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.classList.remove("here"));
      links.get(entry.target.id)?.classList.add("here");
    }
  },
  { rootMargin: "-10% 0px -80% 0px" },
);
document.querySelectorAll("main section").forEach((section) => seen.observe(section));
