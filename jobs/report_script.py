"""What a report's page does by itself: hints at the pointer and by keyboard, and tables that are sorted by a click.

The page says all of it without the script, too: hints are then the browser's own, and tables stay as they are. Nothing
is fetched, and no text of the page becomes code or markup: hints are set as text.
"""

SCRIPT = """
"use strict";
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);

  // Hints move from where the browser shows them to where this script does.
  for (const element of document.querySelectorAll("[title]")) {
    element.dataset.hint = element.title;
    element.removeAttribute("title");
  }
  for (const title of document.querySelectorAll("svg title")) {
    if (title.parentNode.nodeName !== "svg") {
      title.parentNode.dataset.hint = title.textContent;
      title.remove();
    }
  }

  const show = (element, x, y) => {
    tip.textContent = element.dataset.hint;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(x + 14, document.documentElement.clientWidth - box.width - 8);
    const above = y + 18 + box.height > innerHeight ? y - box.height - 12 : y + 18;
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = Math.max(8, above) + "px";
  };
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointermove", (event) => {
    const element = event.target.closest ? event.target.closest("[data-hint]") : null;
    if (element) show(element, event.clientX, event.clientY); else hide();
  });
  document.addEventListener("scroll", hide, { capture: true, passive: true });

  // A picture or a map is one stop of the Tab key; the arrow keys go through its hints.
  const groups = new Map();
  for (const element of document.querySelectorAll("[data-hint]")) {
    const group = element.closest("svg, table") || element;
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(element);
  }
  const mark = (element, on) => { if (element) element.classList.toggle("at", on); };
  for (const [group, elements] of groups) {
    let at = -1;
    const go = (next) => {
      mark(elements[at], false);
      at = Math.min(Math.max(next, 0), elements.length - 1);
      mark(elements[at], true);
      const box = elements[at].getBoundingClientRect();
      show(elements[at], box.left + box.width / 2, box.top + box.height / 2);
    };
    group.setAttribute("tabindex", "0");
    group.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
        Home: 0, End: elements.length - 1 };
      if (event.target !== group) return;
      if (event.key === "Escape") hide();
      else if (event.key in steps) { event.preventDefault(); go(steps[event.key]); }
    });
    group.addEventListener("blur", () => { mark(elements[at], false); at = -1; hide(); });
  }

  // Numbers by their value, texts by the alphabet; what has no value comes last in both directions.
  const value = (cell) => {
    const given = cell.dataset.value;
    if (given !== undefined) return given === "" ? null : Number(given);
    return cell.classList.contains("number") ? null : cell.textContent;
  };
  const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : direction * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(table, column, ascending ? 1 : -1);
      });
    });
  }
})();
"""
