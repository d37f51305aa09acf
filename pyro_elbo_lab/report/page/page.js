"use strict";
// Headers of sortable tables become buttons; without scripts the table stays as it was written.
const words = new Intl.Collator("en", { numeric: true });

function compare(a, b) {
  const x = Number(a), y = Number(b);
  if (a === "" || b === "") return (a === "") - (b === "");
  return Number.isNaN(x) || Number.isNaN(y) ? words.compare(a, b) : x - y;
}

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.sort;
  const [empty, filled] = [[], []];
  for (const row of body.rows) (key(row) === "" ? empty : filled).push(row);
  filled.sort((a, b) => (descending ? compare(key(b), key(a)) : compare(key(a), key(b))));
  body.append(...filled, ...empty);
  for (const [i, header] of [...table.tHead.rows[0].cells].entries()) {
    const order = descending ? "descending" : "ascending";
    header.setAttribute("aria-sort", i === column ? order : "none");
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, header] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    if (!header.hasAttribute("aria-sort")) header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      const text = header.classList.contains("text");
      sort(table, column, before === "none" ? !text : before === "ascending");
    });
  }
}
